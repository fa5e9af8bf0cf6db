"""Ask a variant the questions of a prompt set, in batches, through its own pyfunc interface.

Every answer goes into a journal, so that a killed evaluation goes on where it was. Batches always hold the same
rows, and a batch of which any answer is missing is asked again as a whole: then what a variant answers does not
depend on where it was interrupted, whatever a batch does to the rounding of its numbers. The journal knows a batch
by what it asks: where a line of the prompt set was mended meanwhile, that line's batch alone is asked again.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

from steps.config.schema import Evaluation
from steps.digests import digest
from steps.errors import StepError
from steps.evaluation.fit import Fit
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.output import suppress_output
from steps.store.variants import Variant

SHOWN_ERRORS = 3
# Few, since a row alone takes as long as several in a batch.
ALONE = 8


@dataclass(frozen=True)
class Answer:
    """What a variant said to a row and how long its part of the batch took, or why there is no answer (then "")."""

    text: str = ""
    error: str | None = None
    skipped: str | None = None
    latency_ms: float | None = None
    finish_reason: str | None = None  # of a chat: stop, or length where max_tokens cut it


@dataclass(frozen=True)
class Question:
    """The row at `index` as one repeat asks it; `seed` is None for a variant that draws nothing."""

    repeat: int
    index: int
    conversation: list[dict[str, str]]
    prompt: str
    seed: int | None
    name: str = ""  # what a journal calls the answer


def answer(
    model: Any, variant: Variant, prompt_set: PromptSet, fit: Fit, settings: Evaluation, journal: Journal
) -> list[list[Answer]]:
    """For every repeat the answers to every row, in order; raises StepError beyond `max_errors`."""
    from tqdm import tqdm

    batches = list(_batches(variant, prompt_set, fit, settings))
    known = {name: Answer(**entry) for name, entry in journal.entries.items() if name.startswith("answer ")}
    errors = fit.unaskable | _errors(batches, known)
    if len(errors) > settings.max_errors:
        # What ended an evaluation may have been the machine's fault: such rows are asked again.
        journal.drop([name for name, said in known.items() if said.error is not None])
        known = {name: said for name, said in known.items() if said.error is None}
        errors = dict(fit.unaskable)
    _check_errors(prompt_set, errors, settings.max_errors)
    missing = [batch for batch in batches if not all(question.name in known for question in batch)]
    total, left = sum(map(len, batches)), sum(map(len, missing))
    # disable=None: no bar where the output is not a terminal
    with tqdm(initial=total - left, total=total, desc=variant.name, unit="row", disable=None) as bar:
        for batch in missing:
            found = _ask_timed(model, variant, batch)
            journal.add({name: asdict(said) for name, said in found.items()})
            known |= found
            errors |= _errors([batch], known)
            bar.update(len(batch))
            _check_errors(prompt_set, errors, settings.max_errors)
    said = {(question.repeat, question.index): known[question.name] for batch in batches for question in batch}
    return [
        [_unasked(fit, index) or said[repeat, index] for index in range(len(prompt_set.rows))]
        for repeat in range(_repeats(variant, settings))
    ]


@contextlib.contextmanager
def loaded(uri: str) -> Iterator[Any]:
    """A model with the code that it was logged with; the next model's code starts afresh, and in its memory."""
    import mlflow

    path = list(sys.path)
    _forget_wrappers()
    gc.collect()
    try:
        with suppress_output():
            model = mlflow.pyfunc.load_model(uri)
        yield model
    finally:
        sys.path[:] = path
        _forget_wrappers()
        # MLflow keeps the model that was loaded last.
        mlflow.models.model.__mlflow_model__ = None


def _forget_wrappers() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wrappers"]:
        del sys.modules[name]


def _sampled(variant: Variant) -> bool:
    return float(variant.params["generation.temperature"]) > 0


def _repeats(variant: Variant, settings: Evaluation) -> int:
    """A greedy variant says the same every time."""
    return settings.repeats if _sampled(variant) else 1


def asked_alone(rows: int) -> list[int]:
    """The places, all over so many rows, of those that a greedy variant is asked one by one.

    A served model can be held against these answers: in bf16 the other rows of a batch move the last bits of a number,
    and with them now and then a word.
    """
    return list(range(0, rows, max(1, rows // ALONE)))[:ALONE]


def _batches(variant: Variant, prompt_set: PromptSet, fit: Fit, settings: Evaluation) -> Iterator[list[Question]]:
    """All questions; each has a seed of its own, the same wherever its batch begins."""
    asked = [index for index in range(len(prompt_set.rows)) if _unasked(fit, index) is None]
    alone = set() if _sampled(variant) else set(asked_alone(len(prompt_set.rows)))
    together = [index for index in asked if index not in alone]
    for repeat in range(_repeats(variant, settings)):
        for places in [[index] for index in asked if index in alone] + _cut(together, settings.batch_size):
            yield _named([_question(variant, prompt_set, fit, settings, repeat, index) for index in places])


def _cut(places: list[int], size: int) -> list[list[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _question(
    variant: Variant, prompt_set: PromptSet, fit: Fit, settings: Evaluation, repeat: int, index: int
) -> Question:
    row = prompt_set.rows[index]
    seed = settings.seed + repeat * len(prompt_set.rows) + index if _sampled(variant) else None
    return Question(repeat, index, row.conversation, fit.prompts.get(index, row.question), seed)


def _named(batch: list[Question]) -> list[Question]:
    """Questions by the place in a batch that asks all of these, since an answer may depend on its batch."""
    asked = digest([[question.conversation, question.prompt, question.seed] for question in batch])
    return [replace(question, name=f"answer {asked[:32]} {place}") for place, question in enumerate(batch)]


def _unasked(fit: Fit, index: int) -> Answer | None:
    """Why a row is not asked at all."""
    if index in fit.too_long:
        return Answer(skipped=fit.too_long[index])
    return Answer(error=fit.unaskable[index]) if index in fit.unaskable else None


def _errors(batches: list[list[Question]], known: dict[str, Answer]) -> dict[int, str]:
    """Why rows of these batches have no answer, by index."""
    asked = ((question.index, known.get(question.name)) for batch in batches for question in batch)
    return {index: said.error for index, said in asked if said and said.error}


def _check_errors(prompt_set: PromptSet, errors: dict[int, str], max_errors: int) -> None:
    if len(errors) > max_errors:
        shown = [f"row {prompt_set.rows[index].id!r}: {error}" for index, error in list(errors.items())[:SHOWN_ERRORS]]
        raise StepError(f"{len(errors)} rows failed, more than evaluate.max_errors={max_errors}: {'; '.join(shown)}")


def _ask_timed(model: Any, variant: Variant, batch: list[Question]) -> dict[str, Answer]:
    """The answers to a batch by name; where the whole fails its rows are asked one by one."""
    started = perf_counter()
    try:
        replies = _ask(model, variant, batch)
    except Exception as error:  # whatever a model raises, it is the row's error
        if len(batch) > 1:
            return {name: said for question in batch for name, said in _ask_timed(model, variant, [question]).items()}
        return {batch[0].name: Answer(error=_one_line(error))}
    latency_ms = 1000 * (perf_counter() - started) / len(batch)
    return {question.name: _as_answer(*reply, latency_ms) for question, reply in zip(batch, replies, strict=True)}


def _as_answer(text: Any, finish_reason: str | None, latency_ms: float) -> Answer:
    if not isinstance(text, str):
        return Answer(error=f"the answer is no text but {type(text).__name__}")
    return Answer(_writable(text), latency_ms=latency_ms, finish_reason=finish_reason)


def _writable(text: str) -> str:
    """A text without lone surrogates: what cannot be written cannot be shown either."""
    return text.encode(errors="replace").decode()


def _one_line(error: Exception) -> str:
    return _writable(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")


def _ask(model: Any, variant: Variant, batch: list[Question]) -> list[tuple[Any, str | None]]:
    """Text and finish_reason of every reply; a prompt's has none."""
    if variant.params["mode"] == "transformers":
        # The stock flavour answers the rows of a frame one after the other anyway, and takes no seed.
        return [_ask_stock(model, variant, question) for question in batch]
    if variant.params["interface"] == "prompt":
        return [(reply, None) for reply in _ask_prompts(model, batch)]
    import pandas as pd

    frame = pd.DataFrame({"messages": [question.conversation for question in batch]})
    if batch[0].seed is not None:
        frame["custom_inputs"] = [{"seed": question.seed} for question in batch]
    return [_first_choice(reply) for reply in _replies(model.predict(frame), len(batch))]


def _ask_stock(model: Any, variant: Variant, question: Question) -> tuple[Any, str | None]:
    if question.seed is not None:
        import torch

        torch.manual_seed(question.seed)
    with suppress_output():
        if variant.params["interface"] == "chat":
            return _first_choice(model.predict({"messages": question.conversation})[0])
        return model.predict({"prompt": question.prompt})[0], None


def _ask_prompts(model: Any, batch: list[Question]) -> list[Any]:
    import pandas as pd

    if batch[0].seed is not None:  # params are one for a whole call
        return [model.predict({"prompt": question.prompt}, params={"seed": question.seed}) for question in batch]
    replies = model.predict(pd.DataFrame({"prompt": [question.prompt for question in batch]}))
    return _replies(replies, len(batch))


def _replies(replies: Any, number: int) -> list[Any]:
    listed = replies if isinstance(replies, list) else [replies]
    if len(listed) != number:
        raise ValueError(f"{number} rows got {len(listed)} replies")
    return listed


def _first_choice(reply: dict[str, Any]) -> tuple[Any, str | None]:
    choice = reply["choices"][0]
    return choice["message"]["content"], choice.get("finish_reason")
