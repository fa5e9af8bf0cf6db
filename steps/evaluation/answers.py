"""Answer the rows of a prompt set in batches, with a journal.

A killed evaluation goes on where it stopped. Batches always hold the same rows, and a batch with a missing answer is
asked again as a whole: so an answer does not depend on where the evaluation was interrupted, whatever a batch does to
the rounding of its numbers. The journal knows a batch by what it asks: if a row of the prompt set changes, only its
batch is asked again.

With a course (`evaluate.stop_early=true`), the rows are asked in a seeded order, and a variant may be stopped after any
batch. Its other rows are not asked.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import product

import regex

from steps.config.schema import Evaluation
from steps.digests import digest
from steps.errors import StepError
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.journal import Journal
from steps.evaluation.progress import Progress
from steps.evaluation.prompt_set import PromptSet
from steps.interfaces.interface import Question, Reply
from steps.store.variants import Variant

SHOWN_ERRORS = 3
# Few, because a row alone takes as long as several in a batch.
ALONE = 8
# Anything but spaces, controls, characters of no width, and the Braille pattern without a dot.
VISIBLE = regex.compile(r"[^\p{Z}\p{Cc}\p{Cf}\p{DI}\u2800]")


@dataclass(frozen=True)
class Answer:
    """One row's answer and its share of the batch latency. On error or skip, `text` is empty and the reason is set.

    Attributes:
        finish_reason: stop, or length if max_tokens cut the answer; None if the interface does not say.
        prompt_tokens: How many tokens the prompt has; None if the interface does not say.
        reused_tokens: How many of them the engine had computed before, for another row.
        unasked: Whether the row was not asked, because the variant was stopped early.
    """

    text: str = ""
    error: str | None = None
    skipped: str | None = None
    latency_ms: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    unasked: bool = False

    @property
    def answered(self) -> bool:
        """Return whether there is an answer at all: no error, not skipped, and something to read."""
        return self.error is None and self.skipped is None and is_readable(self.text)


@dataclass(frozen=True)
class Course:
    """The order in which rows are asked if a variant may be stopped early.

    Attributes:
        seed: Decides over the order.
        batch_size: How many rows are asked before the next look.
        is_beaten: Called with the indices of the rows that were asked, in order, and their answers by repeat. If it
            returns True, the other rows are not asked.
    """

    seed: int
    batch_size: int
    is_beaten: Callable[[list[int], list[list[Answer]]], bool] | None = None


@dataclass(frozen=True)
class RowQuestion:
    """The row at `index` as one repeat asks it; `name` is its name in the journal."""

    repeat: int
    index: int
    question: Question
    name: str = ""


def answer_rows(
    asker: Asker,
    variant: Variant,
    prompt_set: PromptSet,
    check: ContextCheck,
    settings: Evaluation,
    journal: Journal,
    course: Course | None = None,
    progress: Progress | None = None,
) -> list[list[Answer]]:
    """Return, for every repeat, the answers to every row in order; raises StepError beyond `max_errors`."""
    progress = progress or Progress(variant.name)
    batches = list(_batches(variant, prompt_set, check, settings, course))
    repeats = _repeats(variant, settings)
    answers = _journaled(journal, batches, check, settings.max_errors)
    errors = check.unaskable | _errors(batches, answers)
    _refuse_errors(prompt_set, errors, settings.max_errors)
    missing = [batch for batch in batches if not all(row.name in answers for row in batch)]
    total, left = sum(map(len, batches)), sum(map(len, missing))
    progress.start(total, total - left)
    with closing(progress):
        for place, batch in enumerate(batches, 1):
            if not all(row.name in answers for row in batch):
                new = _answer_batch(asker, batch)
                journal.add({name: asdict(answer) for name, answer in new.items()})
                answers |= new
                errors |= _errors([batch], answers)
                progress.advance(len(batch))
                _refuse_errors(prompt_set, errors, settings.max_errors)
            if course and batch[0].repeat == repeats - 1 and _is_beaten(course, batches[:place], answers, repeats):
                batches = batches[:place]
                break
    by_place = {(row.repeat, row.index): answers[row.name] for batch in batches for row in batch}
    rows, unasked = range(len(prompt_set.rows)), Answer(unasked=True)
    return [
        [not_asked(check, index) or by_place.get((repeat, index), unasked) for index in rows]
        for repeat in range(repeats)
    ]


def is_readable(text: str) -> bool:
    """Return True if a text holds more than spaces, control characters and characters of no width."""
    return VISIBLE.search(text) is not None


def rows_asked_alone(rows: int) -> list[int]:
    """Return the indices, spread over the prompt set, of the rows that a greedy variant is asked one by one.

    A served model can be compared with these answers. In bf16 the other rows of a batch change the last bits of a
    number, and now and then a word.
    """
    return list(range(0, rows, max(1, rows // ALONE)))[:ALONE]


def not_asked(check: ContextCheck, index: int) -> Answer | None:
    """Return the answer of a row that is not asked at all; None if it is asked."""
    if index in check.too_long:
        return Answer(skipped=check.too_long[index])
    return Answer(error=check.unaskable[index]) if index in check.unaskable else None


def _repeats(variant: Variant, settings: Evaluation) -> int:
    """Return how often to ask. A greedy variant answers the same every time."""
    return 1 if variant.config.generation.greedy else settings.repeats


def _journaled(
    journal: Journal, batches: list[list[RowQuestion]], check: ContextCheck, max_errors: int
) -> dict[str, Answer]:
    """Return the answers of the journal, by name."""
    answers = {name: Answer(**entry) for name, entry in journal.entries.items() if name.startswith("answer ")}
    if len(check.unaskable | _errors(batches, answers)) <= max_errors:
        return answers
    # The machine may have been at fault when the evaluation ended: ask rows with an error again.
    journal.drop([name for name, answer in answers.items() if answer.error is not None])
    return {name: answer for name, answer in answers.items() if answer.error is None}


def _is_beaten(course: Course, batches: list[list[RowQuestion]], answers: dict[str, Answer], repeats: int) -> bool:
    """Return True if the answers to the rows of these batches, in all their repeats, are enough."""
    if course.is_beaten is None:
        return False
    rows = [row for batch in batches for row in batch]
    by_repeat = [[answers[row.name] for row in rows if row.repeat == repeat] for repeat in range(repeats)]
    return course.is_beaten([row.index for row in rows if row.repeat == 0], by_repeat)


def _batches(
    variant: Variant, prompt_set: PromptSet, check: ContextCheck, settings: Evaluation, course: Course | None
) -> Iterator[list[RowQuestion]]:
    """Yield all questions in batches."""
    greedy, rows = variant.config.generation.greedy, len(prompt_set.rows)
    asked = [index for index in range(rows) if not_asked(check, index) is None]
    alone = set(rows_asked_alone(rows)) if greedy else set()
    together = [index for index in asked if index not in alone]
    # A mode that answers one by one reports each row, and loses at most one if it is killed.
    size = course.batch_size if course else settings.batch_size if variant.mode.batches else 1
    if course:
        random.Random(course.seed).shuffle(together)
    groups = [[index] for index in asked if index in alone]
    groups += [together[start : start + size] for start in range(0, len(together), size)]
    repeats = range(_repeats(variant, settings))
    # With a course, all repeats of some rows come before the next rows.
    places = product(groups, repeats) if course else ((group, repeat) for repeat in repeats for group in groups)
    for group, repeat in places:
        yield _named([_row_question(prompt_set, check, greedy, settings, repeat, index) for index in group])


def _row_question(
    prompt_set: PromptSet, check: ContextCheck, greedy: bool, settings: Evaluation, repeat: int, index: int
) -> RowQuestion:
    """Return one question. A sampled one has its own seed, the same in whichever batch it is."""
    row = prompt_set.rows[index]
    seed = settings.seed + repeat * len(prompt_set.rows) + index
    question = Question(row.conversation, check.prompts.get(index, row.question), {} if greedy else {"seed": seed})
    return RowQuestion(repeat, index, question)


def _named(batch: list[RowQuestion]) -> list[RowQuestion]:
    """Name questions by the whole batch and their place in it, because an answer may depend on its batch."""
    content = [[row.question.messages, row.question.prompt, row.question.settings.get("seed")] for row in batch]
    return [replace(row, name=f"answer {digest(content)[:32]} {place}") for place, row in enumerate(batch)]


def _errors(batches: list[list[RowQuestion]], answers: dict[str, Answer]) -> dict[int, str]:
    """Return why rows of these batches have no answer, by index."""
    asked = ((row.index, answers.get(row.name)) for batch in batches for row in batch)
    return {index: answer.error for index, answer in asked if answer and answer.error}


def _refuse_errors(prompt_set: PromptSet, errors: dict[int, str], max_errors: int) -> None:
    if len(errors) > max_errors:
        shown = [f"row {prompt_set.rows[index].id!r}: {error}" for index, error in list(errors.items())[:SHOWN_ERRORS]]
        raise StepError(f"{len(errors)} rows failed, more than evaluate.max_errors={max_errors}: {'; '.join(shown)}")


def _answer_batch(asker: Asker, batch: list[RowQuestion]) -> dict[str, Answer]:
    """Return the answers to a batch by name. If the batch fails as a whole, its rows are asked one by one."""
    try:
        replies = asker.ask([row.question for row in batch])
    except Exception as error:  # whatever a model raises, it is the row's error
        if len(batch) > 1:
            return {name: answer for row in batch for name, answer in _answer_batch(asker, [row]).items()}
        reason = str(error).strip().partition("\n")[0][:200]
        return {batch[0].name: Answer(error=_writable(f"{type(error).__name__}: {reason}"))}
    return {row.name: _to_answer(reply) for row, reply in zip(batch, replies, strict=True)}


def _to_answer(reply: Reply) -> Answer:
    text = reply.texts[0] if reply.texts else None
    if not isinstance(text, str):
        return Answer(error=f"the answer must be text, got {type(text).__name__}")
    reason = reply.finish_reasons[0] if reply.finish_reasons else None
    return Answer(
        _writable(text),
        latency_ms=1000 * (reply.seconds or 0),
        finish_reason=reason,
        prompt_tokens=reply.prompt_tokens,
        reused_tokens=reply.reused_tokens,
    )


def _writable(text: str) -> str:
    """Replace lone surrogates, which cannot be written to a file."""
    return text.encode(errors="replace").decode()
