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
    fidelity,
    journal,
    judge,
    kept_answers,
    likelihoods,
    metric_loading,
    partial,
    scorecard,
    scores,
)
from steps.evaluation.answers import Answer, Course, answer_rows
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.findings import Findings, echo_scored, log
from steps.evaluation.journal import Journal
from steps.evaluation.kept_answers import Kept
from steps.evaluation.progress import Progress
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.ruler import CONTRACT, Ruler
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.scores import Computed
from steps.output import activity, echo, suppress_output
from steps.store import integrity
from steps.store.environment import package_versions
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

IsBeaten = Callable[[list[int], list[list[Answer]]], bool]


@dataclass(frozen=True)
class Work:
    """What it takes to score one variant.

    Attributes:
        client: The store.
        variant: What to score, as it was when nobody else was scoring it.
        rows: The prompt set.
        ruler: What to score it by.
        settings: How to ask.
        entries: The journal of its answers and of the likelihoods of given ones.
        kept: The answers of its scorecard; None if it has none, or is asked again.
        course: The order in which its rows are asked and when to stop; None to ask all of them.
        stale: The parts of the ruler to compute.
        later: How many variants are to be asked after this one.
    """

    client: MlflowClient
    variant: Variant
    rows: PromptSet
    ruler: Ruler
    settings: Evaluation
    entries: Journal
    kept: Kept | None
    course: Course | None
    stale: list[str]
    later: int = 0

    @property
    def reference(self) -> Variant | None:
        """Return the variant that fidelity is measured against; None if fidelity need not be measured."""
        wanted = {metric_loading.REFERENCE, *metric_loading.FIDELITY} & set(self.stale)
        return self.ruler.references.get(self.variant.model_id) if wanted else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the fields of a row that hold the given answers whose likelihoods are needed."""
        return likelihoods.kinds_of(self.stale)

    def unscored(self, answers: list[Answer]) -> list[likelihoods.Given]:
        """Return the given answers whose likelihoods are needed and not in the journal."""
        return likelihoods.missing(self.entries.entries, self.rows, self.kinds, answers)


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
    later: int = 0,
) -> Scorecard | None:
    """Ask, score and log one variant, as a whole or not at all; return None if it was stopped early.

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
        later: How many variants are to be asked after this one, for the forecast.
    """
    again = ask_again and scorecard.has_scorecard(read_variant(client, variant.model_id), rows, ruler)
    with journal.opened(journal_key(variant), rows.sha256, lambda: _echo_waiting(variant), again) as entries:
        # Another process may have scored it while this one waited.
        current = read_variant(client, variant.model_id)
        if not ask_again and _is_complete(client, current, rows, ruler):
            entries.remove()
            return scorecard.read(current, rows.sha256)
        kept = None if again else kept_answers.keep(current, rows, ruler, entries)
        course = _course(current, rows, settings, entries, is_beaten) if ruler.generates else None
        work = Work(client, current, rows, ruler, settings, entries, kept, course, _stale(current, ruler, kept), later)
        card = _finish(work, _find(work, check, over_context))
        entries.remove()
    return card


def _find(work: Work, check: ContextCheck | None, over_context: str) -> Findings:
    """Return the variant's answers and contract results. Load its model only if some of them are missing."""
    kept, entries = work.kept, work.entries
    if kept and work.kinds:
        known = likelihoods.read(work.variant, work.rows.sha256)
        entries.add({name: entry for name, entry in known.items() if name not in entries.entries})
    needs_model = CONTRACT in work.stale or work.reference
    if kept and not needs_model and not work.unscored(kept.repeats[0]):
        return Findings(kept.repeats, None)
    return _ask(work, check, over_context)


def _finish(work: Work, findings: Findings) -> Scorecard | None:
    """Log what was found: a scorecard, or how far it was asked; returns None for a variant that was stopped early."""
    client, variant, rows, entries = work.client, work.variant, work.rows, work.entries
    if work.course and findings.stopped:
        partial.log(client, variant, rows, findings.repeats, work.course, entries, journal_key(variant))
        return None
    card = scores.scorecard(rows, findings.repeats, _compute(work, findings))
    log(client, variant, rows, card, findings, work.kept, likelihoods.kept(entries.entries, rows), _mark(work))
    if partial.mark_of(variant, rows):
        partial.tag(client, variant, rows, {})
    echo_scored(variant, card, work.ruler.first, findings.seconds, work.kept is not None)
    return card


def _stale(variant: Variant, ruler: Ruler, kept: Kept | None) -> list[str]:
    """Return the parts of the ruler that have to be computed; report the metrics that the variant's mode cannot have.

    Raises:
        StepError: Variants are compared by a metric that it cannot have.
    """
    for left_out, sentence in ruler.left_out(variant).items():
        if ruler.first in left_out:
            raise StepError(f"{sentence}: name another metric first in evaluate.metrics or prompt_set.metrics.")
        echo(f"{variant.name} is scored without {', '.join(left_out)}: {sentence}.")
    return scorecard.outdated(kept.parts if kept else {}, ruler.parts(variant))


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


def _ask(work: Work, check: ContextCheck | None, over_context: str) -> Findings:
    """Load the variant's model and ask it what is missing: answers, likelihoods, fidelity, contract checks."""
    client, variant = work.client, work.variant
    if check is None and work.kept is None:
        check = context_check.context_check(variant, work.rows)
        context_check.refuse([check], work.rows, over_context)
    # Before anything of it is loaded: a changed model could run anything.
    if changed := integrity.verify(client, variant):
        raise StepError(f"it is not what build logged: {'; '.join(changed)}.")
    if work.reference:
        # One model is in memory at a time.
        fidelity.prepare(client, work.reference, work.rows, work.settings.batch_size)
    words = f"loading and asking {variant.name}"
    with activity(words) as doing, integrity.local_copy(client, variant) as folder, loaded(folder) as model:
        asker = Asker(model, variant.mode, variant.interface)
        progress = Progress(variant.name, doing, work.later)
        findings = _answers(work, asker, check or ContextCheck(), progress)
        if findings.stopped or CONTRACT not in work.stale:
            return findings
        with suppress_output(), activity(f"checking the contract of {variant.name}"):
            suite = contract_suite.checks(variant.interface.name)
            contract = contract_suite.run_checks(asker, suite, context_check.control_tokens(variant))
    return replace(findings, contract=contract)


def _answers(work: Work, asker: Asker, check: ContextCheck, progress: Progress) -> Findings:
    """Return the answers to the rows, and write the likelihoods that stale metrics need to the journal.

    Unless a metric reads generated answers, the answer to a row is its most likely choice.
    """
    rows, entries, course = work.rows, work.entries, work.course
    repeats = work.kept.repeats if work.kept else []
    if not work.kept and work.ruler.generates:
        if course and (check.too_long or check.unaskable):
            # The rows that cannot be asked have no place in the order.
            course = replace(course, is_beaten=None)
        repeats = answer_rows(asker, work.variant, rows, check, work.settings, entries, course, progress)
        if Findings(repeats, None).stopped:
            return Findings(repeats, None)
    asked = repeats[0] if repeats else [Answer(skipped=check.too_long.get(index)) for index in range(len(rows.rows))]
    if unscored := work.unscored(asked):
        likelihoods.score(asker, work.variant, unscored, work.settings.max_errors, entries)
    if work.reference and (rest := fidelity.missing(entries.entries, work.reference, rows, asked)):
        fidelity.score(asker, work.variant, work.reference, rest, entries)
    return Findings(repeats or [likelihoods.chosen(entries.entries, rows, check.too_long)], None)


def _compute(work: Work, findings: Findings) -> dict[str, list[Computed]]:
    """Return the values of every metric of the ruler, and of the other ones that the kept scorecard has."""
    rows, ruler, kept = work.rows, work.ruler, work.kept
    metrics = metric_loading.load_metrics(ruler.sources[name] for name in work.stale if name in ruler.sources)
    computed = scores.compute(metrics, rows, findings.repeats, work.entries.entries)
    if ruler.judge and metric_loading.JUDGE in work.stale:
        computed[metric_loading.JUDGE] = judge.compute(ruler.judge, rows, findings.repeats, work.entries)
    if work.reference:
        computed |= fidelity.computed(work.entries.entries, work.reference, rows, findings.repeats[0])
    if kept:
        others = [name for name in kept.parts if name not in (*computed, CONTRACT, metric_loading.REFERENCE)]
        computed |= {name: scores.carried(kept.card, name) for name in others}
    names = dict.fromkeys([*ruler.metrics_of(work.variant), *computed])
    return {name: computed[name] for name in names}


def _mark(work: Work) -> dict[str, Any]:
    """Return what the mark of a new scorecard says about its making."""
    variant, ruler, kept = work.variant, work.ruler, work.kept
    is_generated = kept.is_generated if kept else ruler.generates
    return {
        "asked": ruler.asked(variant) | ({} if is_generated else {scorecard.ANSWERS: scorecard.CHOSEN}),
        "parts": (kept.parts if kept else {}) | ruler.parts(variant),
        "sources": scorecard.sources_of([variant], work.rows.sha256) | ruler.own_sources,
    }


def _echo_waiting(variant: Variant) -> None:
    echo(f"Waiting for another process that is asking {variant.name} these rows.")
