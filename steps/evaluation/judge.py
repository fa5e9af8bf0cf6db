"""A language model as a judge: MLflow's own judge, asked through any OpenAI-compatible address.

Each judgement is a number from 0 to 1 and goes into the journal with the answers, so that none is paid for twice.
The key of the address, if it wants one, is in OPENAI_API_KEY.
"""

import contextlib
import os
import re
from collections.abc import Iterator
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
PARTS = "The conversation: {{ inputs }}\nThe answer: {{ outputs }}\nThe accepted answers: {{ expectations }}"
RATING = "Rate with a number from 0 to 1."


def compute(judge: Judge, prompt_set: PromptSet, repeats: list[list[Answer]], journal: Journal) -> list[Computed]:
    """The judgement of every row that was asked; raises StepError where the judge cannot be asked."""
    with _some_key():
        ask = _judge(judge)
        return [_compute(ask, judge, prompt_set, answers, journal) for answers in repeats]


@contextlib.contextmanager
def _some_key() -> Iterator[None]:
    """MLflow's client wants a key, and a local server wants none."""
    given = "OPENAI_API_KEY" in os.environ
    os.environ.setdefault("OPENAI_API_KEY", "none")
    try:
        yield
    finally:
        if not given:
            del os.environ["OPENAI_API_KEY"]


def _compute(ask: Any, judge: Judge, prompt_set: PromptSet, answers: list[Answer], journal: Journal) -> Computed:
    pairs = [pair for pair in zip(prompt_set.rows, answers, strict=True) if not pair[1].skipped]
    names = [f"judge {digest(_asked(judge, row, said))}" for row, said in pairs]
    missing = [(name, *pair) for name, pair in zip(names, pairs, strict=True) if name not in journal.entries]
    with suppress_output(), ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(missing), THREADS):
            _judge_batch(ask, missing[start : start + THREADS], pool, journal)
    scores = [journal.entries[name] for name in names]
    return Computed(scores, {"mean": sum(scores) / len(scores)})


def _asked(judge: Judge, row: Row, said: Answer) -> list[Any]:
    """All that decides over a judgement."""
    return [judge.model, judge.instructions, row.conversation, row.targets, said.text]


def _judge_batch(ask: Any, batch: list[tuple[str, Row, Answer]], pool: Executor, journal: Journal) -> None:
    """Journal every judgement of a batch, whatever becomes of the others; raises StepError with all that failed."""
    asked = {name: pool.submit(_judgement, ask, row, said) for name, row, said in batch}
    failed = [error for future in asked.values() if (error := future.exception())]
    journal.add({name: future.result() for name, future in asked.items() if not future.exception()})
    if failed:
        raise StepError(*(fault for error in failed for fault in error.faults))


def _judge(judge: Judge) -> Any:
    from mlflow.genai.judges import make_judge

    instructions = judge.instructions if "{{" in judge.instructions else f"{judge.instructions}\n\n{PARTS}\n{RATING}"
    return make_judge(
        name="judge",
        instructions=instructions,
        model=f"openai:/{judge.model}",
        base_url=f"{judge.address.rstrip('/')}/chat/completions",
        feedback_value_type=float,
        inference_params={"temperature": 0},
    )


def _judgement(ask: Any, row: Row, said: Answer) -> float:
    if said.error:
        return 0.0  # there is nothing to judge
    try:
        score = float(
            ask(
                inputs={"messages": row.conversation}, outputs=said.text, expectations={"accepted": list(row.targets)}
            ).value
        )
    except Exception as error:  # a server that is away, a reply that is no judgement
        # The address may hold a password.
        reason = re.sub(r"://[^/@ ]+@", "://", str(error).strip().partition("\n")[0][:300])
        raise StepError(f"The judge could not score row {row.id!r}: {type(error).__name__}: {reason}") from error
    if not 0 <= score <= 1:
        raise StepError(f"The judge must give row {row.id!r} a number from 0 to 1, got {score:g}.")
    return score
