"""The smoke test of a registered version: does it answer, when it is served, as it did when it was scored?

The served version is asked a sample of the rows, and the core checks of the contract suite. A greedy variant must
repeat its recorded answers. Where none is recorded that could be repeated, the rows must get an answer at all.
"""

from steps.config.schema import Promotion
from steps.errors import StepError
from steps.evaluation import contract_suite, scorecard
from steps.evaluation.answers import is_readable, rows_asked_alone
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import context_check, control_tokens
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scorecard import Scorecard
from steps.interfaces.interface import Question
from steps.promotion.serving import NotLoaded, NotServed, NotUp, Served, served
from steps.store.variants import Variant


def find_fault(uri: str, variant: Variant, rows: PromptSet, card: Scorecard, promotion: Promotion) -> str | None:
    """Return why a version must not become champion; None if it may.

    Args:
        uri: The version's address in the registry.
        variant: What the version was made from.
        rows: The prompt set.
        card: The variant's answers to it.
        promotion: How many rows to ask, and how long to wait for the server.

    Raises:
        NotServed: The machine could not serve the version.
        StepError: No row of the prompt set can be asked.
    """
    sample = _sample(variant, rows, card, promotion.smoke_rows)
    try:
        with served(uri, variant.interface, promotion.smoke_seconds) as server:
            asker = Asker(server, variant.mode, variant.interface)
            return _answer_fault(asker, variant, sample) or _contract_fault(asker, server, variant)
    except NotUp:
        raise NotServed(f"it was not up within promotion.smoke_seconds={promotion.smoke_seconds:g}") from None
    except NotLoaded as error:
        return str(error)


def _sample(variant: Variant, rows: PromptSet, card: Scorecard, count: int) -> list[tuple[Row, str | None]]:
    """Return rows, spread over the prompt set, with the answers that must be repeated; None for any answer.

    Only generated answers to rows that were asked one by one can be repeated. Without any, answered rows are asked, and
    without those, any rows that the variant can be asked.
    """
    if not scorecard.is_generated(variant, rows.sha256):
        return [(rows.rows[index], None) for index in _spread(_askable(variant, rows), count)]
    answered = [index for index in range(len(rows.rows)) if _is_answered(card, index)]
    alone = set(rows_asked_alone(len(rows.rows))) if variant.config.generation.greedy else set()
    if repeatable := [index for index in answered if index in alone]:
        return [(rows.rows[index], card.answers[index]) for index in _spread(repeatable, count)]
    return [(rows.rows[index], None) for index in _spread(answered or _askable(variant, rows), count)]


def _is_answered(card: Scorecard, index: int) -> bool:
    return card.errors[index] is None and card.skipped[index] is None and is_readable(card.answers[index] or "")


def _spread(indices: list[int], count: int) -> list[int]:
    return indices[:: max(1, len(indices) // count)][:count]


def _askable(variant: Variant, rows: PromptSet) -> list[int]:
    """Return the rows that a variant can be asked; raises StepError if there is none."""
    check = context_check(variant, rows)
    reasons = check.control_tokens | check.too_long | check.unaskable
    askable = [index for index in range(len(rows.rows)) if index not in reasons]
    if not askable:
        reason = next(iter(reasons.values())).rstrip(".")
        raise StepError(
            f"{variant.name} cannot be smoke-tested: none of the {len(rows.rows)} rows of {rows.name} can be asked "
            f"({reason}). Register on another prompt set, or give -P promotion.smoke=false."
        )
    return askable


def _answer_fault(asker: Asker, variant: Variant, sample: list[tuple[Row, str | None]]) -> str | None:
    """Return the first row that is not answered, or that a greedy variant answers differently than recorded."""
    rows = [row for row, _ in sample]
    empty: list[str] = []
    for question, (row, before) in zip(_questions(variant, rows), sample, strict=True):
        try:
            (reply,) = asker.ask([question])
            now = reply.texts[0]
            if not isinstance(now, str):
                raise TypeError(f"the answer must be text, got {type(now).__name__}")
        except NotServed:
            raise
        except Exception as error:  # whatever it is, the row was not answered
            return f"row {row.id} was not answered: {type(error).__name__}: {str(error)[:200]}"
        if before is not None and now != before:
            return f"row {row.id} was answered {before[:80]!r} when it was scored and {now[:80]!r} when it was served"
        if not is_readable(now):
            empty.append(row.id)
    # A sampled variant may draw an empty answer now and then.
    allowed = 0 if variant.config.generation.greedy else len(sample) - 1
    if len(empty) <= allowed:
        return None
    return f"{len(empty)} of {len(sample)} rows got an empty answer: {', '.join(empty)}"


def _questions(variant: Variant, rows: list[Row]) -> list[Question]:
    """Return rows as questions, with several turns as one text if the interface takes no conversations."""
    prompts: dict[int, str] = {}
    if not variant.interface.takes_conversations:
        prompts = context_check(variant, PromptSet("sample", tuple(rows))).prompts
    return [Question(row.conversation, prompts.get(index, row.question)) for index, row in enumerate(rows)]


def _contract_fault(asker: Asker, server: Served, variant: Variant) -> str | None:
    """Return the core checks that the served version fails."""
    checks = contract_suite.core_checks(variant.interface.name, variant.mode, variant.config.precision.name)
    results = contract_suite.run_checks(asker, checks, control_tokens(variant))
    failed = [f"'{result.name}' ({result.fault})" for result in results if result.fault]
    if failed and not server.is_up():
        raise NotServed("the served model stopped answering while its contract was checked")
    return f"it broke the contract: {', '.join(failed)}" if failed else None
