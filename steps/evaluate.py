"""Score variants on a prompt set and log the scores to MLflow.

    python -m steps.evaluate
    mlflow run . -e evaluate -P prompt_set.path=my.jsonl -P run_id=…

Reads conf/evaluate.yaml, the prompt set and the READY variants of the experiment. Writes metrics, the scorecard and
the table of rows to each variant's run and LoggedModel, and a comparison to its own run. If it is killed, the same
command asks only what is missing. Exit codes: 0 done, 1 failed, 3 done but some rows have an error.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from steps import command_line
from steps.config.schema import EvaluateConfig
from steps.errors import StepError
from steps.evaluation import (
    context_check,
    fidelity,
    journal,
    kept_answers,
    leaks,
    metric_loading,
    prompt_set,
    ruler,
    scorecard,
    scores,
    scores_log,
    scoring,
    speed,
    traces,
)
from steps.evaluation.outcome import Outcome
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import comparison, state, variant_report
from steps.evaluation.ruler import Ruler
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.statistics import power_sentence
from steps.output import activity, echo
from steps.promotion import early_stopping
from steps.promotion.missing_scorecard import evaluate_command
from steps.store import integrity, runs, shared_weights
from steps.store.collisions import retried
from steps.store.commands import step_command
from steps.store.names import ERRORS
from steps.store.variants import Variant, elsewhere, find_variants, read_variant, variant_of_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOT_SCORED, NOT_REPORTED = "could not be scored", "is scored, but its report could not be finished"


@dataclass(frozen=True)
class Plan:
    """What an evaluation has to do.

    Attributes:
        chosen: The variants to score.
        asked: Those of them whose model has to be loaded; the others have answers to score.
        unfinished: Scored variants with an unfinished report.
        scored: All variants that are scored already.
        left_out: Model ids of variants whose model has lost files, or needs a device that this machine does not have.
        stopped: Variants that were stopped early before, and stay so.
    """

    chosen: list[Variant]
    asked: list[Variant]
    unfinished: list[Variant]
    scored: list[Variant]
    left_out: frozenset[str]
    stopped: list[Variant] = field(default_factory=list)


def evaluate(
    config: EvaluateConfig, rows: PromptSet | None = None, model_ids: Collection[str] | None = None
) -> Outcome:
    """Score every variant without a scorecard, and finish the report of those that have one.

    Args:
        config: What to score, and how.
        rows: The prompt set, if it is loaded already.
        model_ids: The LoggedModels to score; None for all of the experiment.

    Raises:
        VariantErrors: With every variant that could not be scored or reported on.
        StepError: No variant can be scored.
    """
    import mlflow

    announced = rows is not None
    rows = rows or prompt_set.load(config.prompt_set)
    client, measure = mlflow.MlflowClient(), ruler.make(config)
    scores.check_rows(rows, measure.metrics)
    early_stopping.check(config, measure)
    logged = find_variants(client, runs.experiment_id())
    measure = _with_references(client, config, measure, logged)
    variants = [variant for variant in logged if model_ids is None or variant.model_id in model_ids]
    plan = _plan(client, config, rows, measure, variants)
    plan = replace(plan, left_out=plan.left_out | _lost(client, [one for one in logged if one not in variants], rows))
    if plan.asked and not announced:
        # Before anything is asked: a prompt set that is too small wastes the time.
        echo(power_sentence(len(rows.rows), config.promotion.margin, config.promotion.alpha, len(variants)))
    leaks.warn([*variants, *plan.chosen], rows)
    outcome = Outcome()
    _review(plan.scored, rows, outcome)
    if plan.chosen or plan.unfinished or not state.is_compared(client, logged, rows, measure):
        _evaluate(client, rows, config, measure, plan, outcome)
    elif not plan.stopped:
        echo(f"All variants are already scored on {rows.name} ({len(rows.rows)} rows).")
    outcome.check()
    if not announced:
        comparison.show(client, rows, measure)
    return outcome


def _with_references(client: MlflowClient, config: EvaluateConfig, measure: Ruler, logged: list[Variant]) -> Ruler:
    """Return the ruler with the variants that fidelity is measured against, if it is asked for."""
    if not set(metric_loading.FIDELITY) & set(measure.metrics):
        return measure
    named = [variant_of_run(client, config.run_id)] if config.run_id else []
    known = {variant.model_id: variant for variant in [*logged, *named]}
    return replace(measure, references=fidelity.references(client, known.values(), config.evaluate.reference))


def jobs(config: EvaluateConfig) -> list[list[str]]:
    """Return the overrides of a job for each variant that has to be asked. Speed is measured afterwards, one by one."""
    import mlflow

    client, rows, measure = mlflow.MlflowClient(), prompt_set.load(config.prompt_set), ruler.make(config)
    variants = find_variants(client, runs.experiment_id())
    measure = _with_references(client, config, measure, variants)
    chosen = [] if config.run_id else _choose(client, config, rows, measure, variants)
    runnable = [variant for variant in chosen if not _refusal(client, variant)]
    return [[f"run_id={variant.run_id}", "evaluate.speed=false"] for variant in runnable]


def _plan(
    client: MlflowClient, config: EvaluateConfig, rows: PromptSet, measure: Ruler, variants: list[Variant]
) -> Plan:
    """Decide what to do with each variant, and leave out those that need a model that cannot be run here."""
    settings = config.evaluate
    chosen = _choose(client, config, rows, measure, variants)
    scored = [] if config.run_id else [variant for variant in variants if variant not in chosen]
    stopped = [variant for variant in chosen if early_stopping.stays_stopped(config, variant, rows)]
    for variant in stopped:
        echo(early_stopping.sentence(config, variant, rows))
    chosen = [variant for variant in chosen if variant not in stopped]
    asked = [
        variant
        for variant in chosen
        if kept_answers.needs_model(client, variant, rows, measure)
        or (config.run_id and scorecard.has_scorecard(variant, rows, measure))
    ]
    unfinished = [variant for variant in scored if state.is_unfinished(variant, rows, settings)]
    untimed = [variant for variant in unfinished if settings.speed and not state.is_timed(variant, rows)]
    lost = {variant.model_id: refusal for variant in [*asked, *untimed] if (refusal := _refusal(client, variant))}
    if lost and (config.run_id or len(lost) == len(variants)):
        raise StepError(*(f"{sentence}." for sentence in lost.values()))
    for sentence in lost.values():
        echo(f"Left out: {sentence}.")
    for variant in chosen if not config.run_id else []:
        if variant.model_id not in lost and scorecard.has_scorecard(variant, rows, measure):
            place = scorecard.place(variant, rows.sha256)
            echo(f"The scorecard of {variant.name} cannot be read, so it is asked again: {place}")
    return Plan(
        chosen=[variant for variant in chosen if variant.model_id not in lost],
        asked=[variant for variant in asked if variant.model_id not in lost],
        unfinished=[variant for variant in unfinished if variant.model_id not in lost],
        scored=scored,
        left_out=frozenset(lost),
        stopped=stopped,
    )


def _choose(
    client: MlflowClient, config: EvaluateConfig, rows: PromptSet, measure: Ruler, variants: list[Variant]
) -> list[Variant]:
    """Return the variant of `run_id`, or every variant without a scorecard of this ruler for these rows."""
    if config.run_id:
        return [variant_of_run(client, config.run_id)]
    if not variants:
        hint = elsewhere(client, runs.experiment_id())
        raise StepError(
            f"There is no variant to evaluate in this experiment. Build one: `{step_command('build')}`.{hint}"
        )
    return [
        variant
        for variant in variants
        if not scorecard.has_scorecard(variant, rows, measure) or not scorecard.is_stored(client, variant, rows.sha256)
    ]


def _refusal(client: MlflowClient, variant: Variant) -> str | None:
    """Return why a variant's model cannot be run here, without a full stop: lost files or no device; None if it can."""
    if lost := integrity.missing(client, variant):
        return integrity.broken_model(variant, lost)
    fault = variant.config.mode.device_fault
    return f"{variant.name} ({variant.uri}) cannot run here: {fault}" if fault else None


def _lost(client: MlflowClient, others: list[Variant], rows: PromptSet) -> frozenset[str]:
    """Return which variants that are not scored now cannot be compared either, because they have lost files."""
    lost: set[str] = set()
    for variant in others:
        if scorecard.metrics_of(variant, rows.sha256) is not None and (files := integrity.missing(client, variant)):
            echo(f"Left out: {integrity.broken_model(variant, files)}.")
            lost.add(variant.model_id)
    return frozenset(lost)


def _review(scored: list[Variant], rows: PromptSet, outcome: Outcome) -> None:
    """Collect the row errors of variants that were scored before, and remove what a killed evaluation left."""
    for variant in scored:
        journal.forget(scoring.journal_key(variant), rows.sha256)
        with outcome.recorded(variant, NOT_REPORTED):
            if (scorecard.metrics_of(variant, rows.sha256) or {}).get(ERRORS.key):
                outcome.add_row_errors(variant, scorecard.read(variant, rows.sha256))


def _evaluate(
    client: MlflowClient, rows: PromptSet, config: EvaluateConfig, measure: Ruler, plan: Plan, outcome: Outcome
) -> None:
    """Score the chosen variants, finish reports and compare all variants, in the evaluation's own run."""
    import mlflow

    settings = config.evaluate
    checks = context_check.check_variants(plan.asked, rows, config.prompt_set.over_context)
    unfinished = list(plan.unfinished)
    untimed = [variant for variant in [*plan.chosen, *unfinished] if not state.is_timed(variant, rows)]
    timed = [*plan.asked, *untimed] if settings.speed else []
    with runs.start(f"evaluate-{rows.name}"), speed.bench(timed) as bench, shared_weights.reading_once():
        mlflow.log_params(
            {"prompt_set.rows": len(rows.rows), "prompt_set.sha256": rows.sha256, "evaluated": len(plan.chosen)}
        )
        retried(mlflow.log_input, scores_log.dataset(rows), context="evaluation")
        for place, variant in enumerate(plan.chosen, 1):
            words = f"scoring {variant.name}, {place} of {len(plan.chosen)}"
            with activity(words), outcome.recorded(variant, NOT_SCORED):
                later = sum(other in plan.asked for other in plan.chosen[place:])
                if card := _score(client, config, variant, rows, measure, checks.get(variant.model_id), later):
                    outcome.add_row_errors(variant, card)
                    outcome.model_ids.append(variant.model_id)
                    unfinished.append(variant)
        for place, variant in enumerate(unfinished, 1):
            words = f"timing {variant.name}, {place} of {len(unfinished)}"
            with activity(words), outcome.recorded(variant, NOT_REPORTED):
                variant_report.finish(client, variant, rows, settings, bench)
        if traces.are_wanted(rows, settings):
            for variant in plan.scored:
                if variant not in plan.unfinished:
                    traces.link(traces.trace_ids(variant, rows))
        for variant, fault in comparison.compare(client, rows, measure, plan.left_out):
            command = evaluate_command(config.prompt_set, measure.metrics, variant.run_id, measure.own_sources)
            outcome.faults.append(f"{fault} Score it again: `{command}`.")
        # Inside the run, so that it reads FAILED.
        outcome.check()


def _score(
    client: MlflowClient,
    config: EvaluateConfig,
    variant: Variant,
    rows: PromptSet,
    measure: Ruler,
    check: context_check.ContextCheck | None,
    later: int,
) -> Scorecard | None:
    """Score one variant; None if it was stopped early. `later` are to be asked after it."""
    card = scoring.score_variant(
        client,
        variant,
        rows,
        measure,
        config.evaluate,
        ask_again=config.run_id is not None,
        check=check,
        over_context=config.prompt_set.over_context,
        is_beaten=early_stopping.decider(client, config, variant, rows, measure),
        later=later,
    )
    if card is None:
        early_stopping.report(config, read_variant(client, variant.model_id), rows)
    return card


def main() -> None:
    """Run the step from the command line."""
    command_line.run("evaluate", lambda config: evaluate(config).check_rows(), jobs)


if __name__ == "__main__":
    main()
