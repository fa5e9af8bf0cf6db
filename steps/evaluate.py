"""Score variants on a prompt set and log the scores to MLflow.

    python -m steps.evaluate
    mlflow run . -e evaluate -P prompt_set.path=my.jsonl -P run_id=…

Reads conf/evaluate.yaml, the prompt set and the READY variants of the experiment. Writes metrics, the scorecard and
the table of rows to each variant's run and LoggedModel, and a comparison to its own run. If it is killed, the same
command asks only what is missing. Exit codes: 0 done, 1 failed, 3 done but some rows have an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steps import command_line
from steps.config.schema import EvaluateConfig
from steps.errors import RowErrors, StepError, VariantErrors, reason
from steps.evaluation import context_check, journal, leaks, prompt_set, scorecard, scores, scoring, speed
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import comparison, state, variant_report
from steps.evaluation.scorecard import Scorecard
from steps.output import echo
from steps.store import connection, runs
from steps.store.names import ERRORS
from steps.store.variants import Variant, find_variants, variant_of_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

BUILD_ONE = "Build one with `mlflow run . -e build` (or `python -m steps.build`)."
NOT_SCORED, NOT_REPORTED = "could not be scored", "is scored, but its report could not be finished"


@dataclass(frozen=True)
class Outcome:
    """What an evaluation did.

    Attributes:
        model_ids: The LoggedModels that were scored.
        row_errors: A sentence for each variant with rows that have an error.
        faults: A sentence for each variant that could not be scored or reported on.
    """

    model_ids: list[str] = field(default_factory=list)
    row_errors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise VariantErrors if there is any fault."""
        if self.faults:
            raise VariantErrors(*self.faults, *self.row_errors)

    def check_rows(self) -> None:
        """Raise RowErrors, for exit code 3, if some rows have an error."""
        if self.row_errors:
            raise RowErrors(*self.row_errors)


def evaluate(config: EvaluateConfig, rows: PromptSet | None = None) -> Outcome:
    """Score every variant without a scorecard, and finish the report of those that have one.

    Args:
        config: What to score, and how.
        rows: The prompt set, if it is loaded already.

    Raises:
        VariantErrors: With every variant that could not be scored or reported on.
        StepError: No variant can be scored.
    """
    import mlflow

    rows = rows or prompt_set.load(config.prompt_set)
    scores.check_rows(rows, config)
    client = mlflow.MlflowClient()
    variants = find_variants(client, runs.experiment_id())
    chosen = _choose(client, config, rows, variants)
    scored = [] if config.run_id else [variant for variant in variants if variant not in chosen]
    unfinished = [variant for variant in scored if state.is_unfinished(variant, rows, config)]
    others = any(variant.config.mode.device_fault is None for variant in variants)
    absent = _leave_out([*chosen, *unfinished], can_go_on=not config.run_id and others)
    for warning in leaks.warnings([*variants, *chosen], rows):
        echo(f"Warning: {warning}")
    chosen, unfinished = ([one for one in group if one not in absent] for group in (chosen, unfinished))
    outcome = Outcome()
    _review(scored, rows, outcome)
    if chosen or unfinished or not state.is_compared(client, variants, rows, config):
        _evaluate(client, rows, config, chosen, unfinished, outcome)
    else:
        echo(f"All variants are already scored on {rows.name} ({len(rows.rows)} rows).")
        outcome.check()
    return outcome


def _choose(client: MlflowClient, config: EvaluateConfig, rows: PromptSet, variants: list[Variant]) -> list[Variant]:
    """Return the variant of `run_id`, or every variant without a scorecard for these rows."""
    if config.run_id:
        return [variant_of_run(client, config.run_id)]
    if not variants:
        raise StepError(f"There is no variant to evaluate in this experiment. {BUILD_ONE}")
    metrics = scores.names(config)
    return [variant for variant in variants if not scorecard.has_scorecard(variant, rows, metrics, config)]


def _leave_out(needed: list[Variant], can_go_on: bool) -> list[Variant]:
    """Return the variants that this machine cannot run, and print a sentence about each.

    Raises:
        StepError: There is such a variant, and the evaluation cannot go on without it.
    """
    faults = [(variant, fault) for variant in needed if (fault := variant.config.mode.device_fault)]
    sentences = [f"{variant.name} ({variant.uri}) cannot run here: {fault}." for variant, fault in faults]
    if sentences and not can_go_on:
        raise StepError(*sentences)
    for sentence in sentences:
        echo(f"Left out: {sentence}")
    return [variant for variant, _ in faults]


def _review(scored: list[Variant], rows: PromptSet, outcome: Outcome) -> None:
    """Collect the row errors of variants that were scored before, and remove what a killed evaluation left."""
    for variant in scored:
        journal.forget(scoring.journal_key(variant), rows.sha256)
        with _recorded(variant, NOT_REPORTED, outcome):
            if (scorecard.metrics_of(variant, rows.sha256) or {}).get(ERRORS.key):
                outcome.row_errors.extend(_row_errors(variant, scorecard.read(variant, rows.sha256)))


def _evaluate(
    client: MlflowClient,
    rows: PromptSet,
    config: EvaluateConfig,
    chosen: list[Variant],
    unfinished: list[Variant],
    outcome: Outcome,
) -> None:
    """Score the chosen variants, finish reports and compare all variants, in the evaluation's own run."""
    import mlflow

    checks = context_check.check_variants(chosen, rows, config.prompt_set.over_context)
    metrics = scores.load_metrics(scores.names(config)) if chosen else {}
    untimed = [variant for variant in unfinished if state.is_untimed(variant, rows, config)]
    timed = [*chosen, *untimed] if config.evaluate.speed else []
    with runs.start(f"evaluate-{rows.name}"), speed.bench(timed) as bench:
        mlflow.log_params(
            {"prompt_set.rows": len(rows.rows), "prompt_set.sha256": rows.sha256, "evaluated": len(chosen)}
        )
        for variant in chosen:
            with _recorded(variant, NOT_SCORED, outcome):
                check = checks.get(variant.model_id)
                card = scoring.score_variant(client, variant, rows, metrics, config, check)
                outcome.row_errors.extend(_row_errors(variant, card))
                outcome.model_ids.append(variant.model_id)
                unfinished.append(variant)
        for variant in unfinished:
            with _recorded(variant, NOT_REPORTED, outcome):
                variant_report.finish(client, variant, rows, config, bench)
        outcome.faults.extend(comparison.compare(client, rows, config))
        # Inside the run, so that it reads FAILED.
        outcome.check()


@contextlib.contextmanager
def _recorded(variant: Variant, what: str, outcome: Outcome) -> Iterator[None]:
    """Record an exception as this variant's failure and carry on with the others."""
    try:
        yield
    except Exception as error:
        connection.check_server("went away and has not come back")
        outcome.faults.append(f"{variant.name} ({variant.uri}) {what}: {reason(error)}")


def _row_errors(variant: Variant, card: Scorecard) -> list[str]:
    """Return a sentence about the rows of a variant that have an error, if any."""
    errors = {row_id: error for row_id, error in zip(card.ids, card.errors, strict=True) if error}
    if not errors:
        return []
    row_id, error = next(iter(errors.items()))
    return [f"{variant.name} is scored, but {len(errors)} rows have an error: row {row_id!r}: {error}"]


def main() -> None:
    """Run the step from the command line."""
    command_line.run("evaluate", lambda config: evaluate(config).check_rows())


if __name__ == "__main__":
    main()
