"""The smoke test of a registered version: does it answer, when it is served, as it did when it was scored?

The served version is asked a sample of the rows, and the core checks of the contract suite.
"""

from steps.config.schema import Promotion
from steps.evaluation import contract_suite
from steps.evaluation.answers import rows_asked_alone
from steps.evaluation.asking import Asker
from steps.evaluation.context_check import context_check
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scorecard import Scorecard
from steps.interfaces.interface import Question
from steps.promotion.serving import NotLoaded, NotServed, Served, served
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
    """
    recorded = _sample(rows, card, promotion.smoke_rows)
    try:
        with served(uri, variant.interface, promotion.smoke_seconds) as server:
            asker = Asker(server, variant.mode, variant.interface)
            return _answer_fault(asker, variant, recorded) or _contract_fault(asker, server, variant)
    except NotLoaded as error:
        return str(error)


def _sample(rows: PromptSet, card: Scorecard, count: int) -> list[tuple[Row, str]]:
    """Return rows, spread over the prompt set, with their recorded answers: rows that were asked one by one."""
    answered = []
    for index in rows_asked_alone(len(rows.rows)):
        answer = card.answers[index]
        if answer is not None and card.errors[index] is None and card.skipped[index] is None:
            answered.append((rows.rows[index], answer))
    return answered[:: max(1, len(answered) // count)][:count]


def _answer_fault(asker: Asker, variant: Variant, recorded: list[tuple[Row, str]]) -> str | None:
    """Return the first row that is not answered, or that a greedy variant answers differently than recorded."""
    for question, (row, before) in zip(_questions(variant, [row for row, _ in recorded]), recorded, strict=True):
        try:
            (reply,) = asker.ask([question])
            now = reply.texts[0]
            if not isinstance(now, str):
                raise TypeError(f"the answer must be text, got {type(now).__name__}")
        except NotServed:
            raise
        except Exception as error:  # whatever it is, the row was not answered
            return f"row {row.id} was not answered: {type(error).__name__}: {str(error)[:200]}"
        if variant.config.generation.greedy and now != before:
            return f"row {row.id} was answered {before[:80]!r} when it was scored and {now[:80]!r} when it was served"
    return None


def _questions(variant: Variant, rows: list[Row]) -> list[Question]:
    """Return rows as questions, with several turns as one text if the interface takes no conversations."""
    prompts: dict[int, str] = {}
    if not variant.interface.takes_conversations:
        prompts = context_check(variant, PromptSet("sample", tuple(rows))).prompts
    return [Question(row.conversation, prompts.get(index, row.question)) for index, row in enumerate(rows)]


def _contract_fault(asker: Asker, server: Served, variant: Variant) -> str | None:
    """Return the core checks that the served version fails."""
    checks = contract_suite.core_checks(variant.interface.name, variant.mode, variant.config.precision.name)
    failed = [
        f"'{result.name}' ({result.fault})" for result in contract_suite.run_checks(asker, checks) if result.fault
    ]
    if failed and not server.is_up():
        raise NotServed("the served model stopped answering while its contract was checked")
    return f"it broke the contract: {', '.join(failed)}" if failed else None
