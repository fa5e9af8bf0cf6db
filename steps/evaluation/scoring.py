"""Score one variant: ask it, compute the metrics, log the scorecard.

If the variant has answers already and only the ruler differs, its answers are kept: no model is loaded, and only what
differs is computed again. A changed contract suite is run again, because it has no answers to keep.

A variant that is stopped early gets no scorecard: partial.py keeps its answers, and the next time only the rest is
asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steps.config.schema import Evaluation
from steps.errors import StepError
from steps.evaluation import (
    context_check,
    contract_suite,
    journal,
    judge,
    kept_answers,
    metric_loading,
    partial,
    scorecard,
    scores,
    scores_log,
)
from steps.evaluation.answers import Answer, Course, answer_rows
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.journal import Journal
from steps.evaluation.kept_answers import Kept
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import state
from steps.evaluation.ruler import CONTRACT, Ruler
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.scores import Computed
from steps.output import activity, echo, suppress_output
from steps.store import integrity, names, runs
from steps.store.environment import package_versions
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN_ROWS = 5
IsBeaten = Callable[[list[int], list[list[Answer]]], bool]


@dataclass(frozen=True)
class Findings:
    """What asking a variant gave: answers of every repeat, and the results of the contract suite if it was run."""

    repeats: list[list[Answer]]
    contract: list[contract_suite.Result] | None

    @property
    def stopped(self) -> bool:
        """Return whether rows were not asked, because the variant was stopped early."""
        return any(answer.unasked for answer in self.repeats[0])

    @property
    def seconds(self) -> float:
        """Return how many seconds the answers took, whenever they were given."""
        return sum(answer.latency_ms or 0 for answers in self.repeats for answer in answers) / 1000


@dataclass(frozen=True)
class Work:
    """What it takes to score one variant.

    Attributes:
        client: The store.
        variant: What to score, as it was when nobody else was scoring it.
        rows: The prompt set.
        ruler: What to score it by.
        entries: The journal of its answers.
        kept: The answers of its scorecard; None if it has none, or is asked again.
        course: The order in which its rows are asked and when to stop; None to ask all of them.
    """

    client: MlflowClient
    variant: Variant
    rows: PromptSet
    ruler: Ruler
    entries: Journal
    kept: Kept | None
    course: Course | None


def score_variant(
    client: MlflowClient,
    variant: Variant,
    rows: PromptSet,
    ruler: Ruler,
    settings: Evaluation,
    *,
    ask_again: bool = False,
    check: ContextCheck | None = None,
    over_context: str = "refuse",
    is_beaten: IsBeaten | None = None,
) -> Scorecard | None:
    """Ask, score and log one variant. Its scorecard counts only when all of it is logged.

    Args:
        client: The store.
        variant: What to score.
        rows: The prompt set.
        ruler: What to score it by.
        settings: How to ask.
        ask_again: Ask a variant again that has a scorecard by this ruler.
        check: The variant's context check, if it was made before.
        over_context: What to do with rows beyond the context.
        is_beaten: Whether some answers suffice to stop asking the variant (`answers.Course`); None to ask all rows.

    Returns:
        None if the variant was stopped early.
    """
    again = ask_again and scorecard.has_scorecard(read_variant(client, variant.model_id), rows, ruler)
    with journal.opened(journal_key(variant), rows.sha256, lambda: _echo_waiting(variant), again) as entries:
        # Another process may have scored it while this one waited.
        current = read_variant(client, variant.model_id)
        if not ask_again and _is_complete(client, current, rows, ruler):
            entries.remove()
            return scorecard.read(current, rows.sha256)
        kept = None if again else kept_answers.keep(current, rows, ruler, entries)
        work = Work(client, current, rows, ruler, entries, kept, _course(current, rows, settings, entries, is_beaten))
        card = _finish(work, _find(work, settings, check, over_context))
        entries.remove()
    return card


def _find(work: Work, settings: Evaluation, check: ContextCheck | None, over_context: str) -> Findings:
    """Return the variant's answers, and its contract if that is out of date."""
    kept = work.kept
    if kept and CONTRACT not in scorecard.outdated(kept.parts, work.ruler.parts(work.variant)):
        return Findings(kept.repeats, None)
    return _ask(work, settings, check, over_context)


def _finish(work: Work, findings: Findings) -> Scorecard | None:
    """Log what was found: a scorecard, or how far it was asked; returns None for a variant that was stopped early."""
    client, variant, rows = work.client, work.variant, work.rows
    if work.course and findings.stopped:
        partial.log(client, variant, rows, findings.repeats, work.course, work.entries, journal_key(variant))
        return None
    card = scores.scorecard(rows, findings.repeats, _compute(work, findings))
    _log(work, card, findings)
    if partial.mark_of(variant, rows):
        partial.tag(client, variant, rows, {})
    _echo_scored(variant, card, work.ruler.first, findings.seconds, work.kept is not None)
    return card


def journal_key(variant: Variant) -> dict[str, Any]:
    """Return everything that decides over an answer in addition to the question."""
    return {
        "environment": package_versions(),
        "model_id": variant.model_id,
        "fingerprint": variant.fingerprint,
    }


def _is_complete(client: MlflowClient, variant: Variant, rows: PromptSet, ruler: Ruler) -> bool:
    return scorecard.has_scorecard(variant, rows, ruler) and scorecard.is_stored(client, variant, rows.sha256)


def _course(
    variant: Variant, rows: PromptSet, settings: Evaluation, entries: Journal, is_beaten: IsBeaten | None
) -> Course | None:
    """Return the course that a variant was begun with, or a new one if it may be stopped early; None without any."""
    course = partial.restore(variant, rows, journal_key(variant), entries)
    if course is None and is_beaten:
        course = Course(settings.seed, settings.batch_size)
    return replace(course, is_beaten=is_beaten) if course else None


def _ask(work: Work, settings: Evaluation, check: ContextCheck | None, over_context: str) -> Findings:
    """Load the variant's model, ask it the rows unless its answers are kept, and run the contract suite."""
    variant, rows, kept, course = work.variant, work.rows, work.kept, work.course
    if check is None and kept is None:
        check = context_check.context_check(variant, rows)
        context_check.refuse([check], rows, over_context)
    # Before anything of it is loaded: a changed model could run anything.
    if changed := integrity.verify(work.client, variant):
        raise StepError(f"it is not what build logged: {'; '.join(changed)}.")
    words = f"loading and asking {variant.name}"
    with activity(words), integrity.local_copy(work.client, variant) as folder, loaded(folder) as model:
        asker = Asker(model, variant.mode, variant.interface)
        if kept:
            repeats = kept.repeats
        else:
            check = check or ContextCheck()
            if course and (check.too_long or check.unaskable):
                # The rows that cannot be asked have no place in the order.
                course = replace(course, is_beaten=None)
            repeats = answer_rows(asker, variant, rows, check, settings, work.entries, course)
        findings = Findings(repeats, None)
        if findings.stopped:
            return findings
        with suppress_output(), activity(f"checking the contract of {variant.name}"):
            suite = contract_suite.checks(variant.interface.name)
            contract = contract_suite.run_checks(asker, suite, context_check.control_tokens(variant))
    return replace(findings, contract=contract)


def _compute(work: Work, findings: Findings) -> dict[str, list[Computed]]:
    """Return the values of every metric of the ruler, and of the other ones that the kept scorecard has."""
    rows, ruler, kept = work.rows, work.ruler, work.kept
    outdated = scorecard.outdated(kept.parts, ruler.parts(work.variant)) if kept else ruler.metrics
    stale = [name for name in ruler.metrics if name in outdated]
    metrics = metric_loading.load_metrics(ruler.sources[name] for name in stale if name in ruler.sources)
    computed = scores.compute(metrics, rows, findings.repeats)
    if ruler.judge and metric_loading.JUDGE in stale:
        computed[metric_loading.JUDGE] = judge.compute(ruler.judge, rows, findings.repeats, work.entries)
    if kept:
        others = [name for name in kept.parts if name not in computed and name != CONTRACT]
        computed |= {name: scores.carried(kept.card, name) for name in others}
    names = dict.fromkeys([*ruler.metrics, *computed])
    return {name: computed[name] for name in names}


def _mark(work: Work) -> dict[str, Any]:
    """Return what the mark of a new scorecard says about its making."""
    variant, ruler = work.variant, work.ruler
    return {
        "asked": ruler.asked(variant),
        "parts": (work.kept.parts if work.kept else {}) | ruler.parts(variant),
        "sources": scorecard.sources_of([variant], work.rows.sha256) | ruler.own_sources,
    }


def _log(work: Work, card: Scorecard, findings: Findings) -> None:
    """Log everything to the variant's run and LoggedModel, and last the mark that says that it is complete."""
    import mlflow

    client, variant, rows, kept = work.client, work.variant, work.rows, work.kept
    data = scores_log.dataset(rows)
    latencies = [answer.latency_ms for answer in findings.repeats[0]]
    state.invalidate(client, variant, rows, keep_speed=kept is not None)
    with runs.reopen(variant.run_id):
        scores_log.log(card, data, latencies, variant.model_id)
        # With the dataset, so that what was measured on two prompt sets can be told apart.
        counts = _contract_counts(findings) | ({} if kept else _answer_counts(card, findings))
        if counts:
            mlflow.log_metrics(counts, dataset=data, model_id=variant.model_id)
        if findings.contract is not None:
            # log_table would append to the table of an earlier evaluation of this run.
            results = [[result.name, result.fault is None, result.fault or ""] for result in findings.contract]
            mlflow.log_dict({"columns": ["check", "passed", "fault"], "data": results}, "contract.json")
        scorecard.log(card, latencies)
        mlflow.set_tag(names.PROMPT_SET_SHA256, rows.sha256)
    value = scorecard.mark(rows, data.digest, **_mark(work))
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): value})


def _answer_counts(card: Scorecard, findings: Findings) -> dict[str, float]:
    """Return the metrics of the answers that are no scores: time, errors, skipped rows."""
    first = findings.repeats[0]
    counts: dict[str, float] = {
        "answers/seconds": findings.seconds,
        names.ERRORS.key: sum(error is not None for error in card.errors),
        names.SKIPPED.key: sum(skipped is not None for skipped in card.skipped),
    }
    if any(answer.finish_reason for answer in first):
        counts[names.TRUNCATED.key] = sum(answer.finish_reason == "length" for answer in first)
    return counts


def _contract_counts(findings: Findings) -> dict[str, float]:
    """Return the metrics of the contract suite; empty if it was not run."""
    if findings.contract is None:
        return {}
    return {
        names.CONTRACT_PASSED.key: sum(result.fault is None for result in findings.contract),
        names.CONTRACT_TOTAL.key: len(findings.contract),
    }


def _echo_waiting(variant: Variant) -> None:
    echo(f"Waiting for another process that is asking {variant.name} these rows.")


def _echo_scored(variant: Variant, card: Scorecard, metric: str, seconds: float, kept: bool) -> None:
    score = f"{metric} {card.metrics[f'{metric}/mean']:.3f}" if f"{metric}/mean" in card.metrics else "scored"
    how = "from its kept answers" if kept else f"{seconds:.1f} s"
    echo(f"Scored {variant.name}: {score} ({how}{_skipped(card)})")


def _skipped(card: Scorecard) -> str:
    """Return which rows were skipped, and why the first of them was."""
    skipped = [row_id for row_id, reason in zip(card.ids, card.skipped, strict=True) if reason]
    if not skipped:
        return ""
    more = [f"and {len(skipped) - SHOWN_ROWS} more"] if len(skipped) > SHOWN_ROWS else []
    shown = ", ".join([*map(repr, skipped[:SHOWN_ROWS]), *more])
    return f"; {len(skipped)} rows skipped ({shown}): {next(filter(None, card.skipped))}"
