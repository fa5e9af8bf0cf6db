"""Score answers with a language model: MLflow's judge, behind any OpenAI-compatible address.

Each judgement is a number within 0..1. It is stored in the journal with the answers, so that none is paid for twice.
If the address needs a key, set OPENAI_API_KEY.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from steps.config.schema import Judge
from steps.digests import digest
from steps.errors import StepError
from steps.evaluation.answers import Answer
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scores import Computed
from steps.output import suppress_output

THREADS = 8
FIELDS = "The conversation: {{ inputs }}\nThe answer: {{ outputs }}\nThe accepted answers: {{ expectations }}"
RATING = "Rate with a number from 0 to 1."


def compute(judge: Judge, prompt_set: PromptSet, repeats: list[list[Answer]], journal: Journal) -> list[Computed]:
    """Judge the answers of every repeat, except those of skipped rows.

    Raises:
        StepError: the judge did not answer, or its reply is not a number within 0..1. Judgements made so far are kept.
    """
    with _placeholder_key():
        ask = _make_judge(judge)
        return [_compute_repeat(ask, judge, prompt_set, answers, journal) for answers in repeats]


@contextlib.contextmanager
def _placeholder_key() -> Iterator[None]:
    """Set OPENAI_API_KEY if it is not set: MLflow's client requires one even if the server does not."""
    is_set = "OPENAI_API_KEY" in os.environ
    os.environ.setdefault("OPENAI_API_KEY", "none")
    try:
        yield
    finally:
        if not is_set:
            del os.environ["OPENAI_API_KEY"]


def _make_judge(judge: Judge) -> Callable[..., Any]:
    from mlflow.genai.judges import make_judge

    instructions = judge.instructions if "{{" in judge.instructions else f"{judge.instructions}\n\n{FIELDS}\n{RATING}"
    return make_judge(
        name="judge",
        instructions=instructions,
        model=f"openai:/{judge.model}",
        base_url=f"{str(judge.address).rstrip('/')}/chat/completions",
        feedback_value_type=float,
        inference_params={"temperature": 0},
    )


def _compute_repeat(
    ask: Callable[..., Any], judge: Judge, prompt_set: PromptSet, answers: list[Answer], journal: Journal
) -> Computed:
    asked = [(row, answer) for row, answer in zip(prompt_set.rows, answers, strict=True) if not answer.skipped]
    # A judgement is known by all that it depends on.
    names = [
        f"judge {digest([judge.model, judge.instructions, row.conversation, row.targets, answer.text])}"
        for row, answer in asked
    ]
    missing = [(name, *pair) for name, pair in zip(names, asked, strict=True) if name not in journal.entries]
    with suppress_output(), ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(missing), THREADS):
            _judge_batch(ask, missing[start : start + THREADS], pool, journal)
    scores = [journal.entries[name] for name in names]
    return Computed(scores, {"mean": sum(scores) / len(scores)})


def _judge_batch(
    ask: Callable[..., Any], batch: list[tuple[str, Row, Answer]], pool: Executor, journal: Journal
) -> None:
    """Add the judgements of a batch to the journal, then raise StepError with the faults of those that failed."""
    futures = {name: pool.submit(_judge_answer, ask, row, answer) for name, row, answer in batch}
    judgements: dict[str, float] = {}
    faults: list[str] = []
    for name, future in futures.items():
        try:
            judgements[name] = future.result()
        except StepError as error:
            faults += error.faults
    journal.add(judgements)
    if faults:
        raise StepError(*faults)


def _judge_answer(ask: Callable[..., Any], row: Row, answer: Answer) -> float:
    if not answer.answered:
        return 0.0  # there is no text to judge
    expectations = {"accepted": list(row.targets)}
    try:
        feedback = ask(inputs={"messages": row.conversation}, outputs=answer.text, expectations=expectations)
        score = float(feedback.value)
    except Exception as error:  # the server does not answer, or its reply is not a judgement
        # The address may contain a password.
        reason = re.sub(r"://[^/@ ]+@", "://", str(error).strip().partition("\n")[0][:300])
        raise StepError(f"The judge could not score row {row.id!r}: {type(error).__name__}: {reason}") from error
    if not 0 <= score <= 1:
        raise StepError(f"The judge must give row {row.id!r} a number from 0 to 1, got {score:g}.")
    return score
