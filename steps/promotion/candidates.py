"""Read variants as candidates: their metrics, the scores of their rows, and what is wrong with their scorecards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING

from steps.config.schema import Promotion
from steps.errors import StepError
from steps.evaluation import scorecard
from steps.evaluation.answers import is_readable
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.evaluation.scores import counted, known
from steps.promotion.candidate import Candidate
from steps.promotion.costs import with_measured_costs
from steps.promotion.job import Job
from steps.promotion.registry import is_missing
from steps.store.names import CONTRACT_PASSED, CONTRACT_RATE, CONTRACT_TOTAL, SKIPPED, metric_key, row_metric
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_variant(client: MlflowClient, model_id: str) -> Variant | None:
    """Return the variant with a LoggedModel; None if the model was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return read_variant(client, model_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def measured_policy(job: Job, variants: list[Variant]) -> Promotion:
    """Return the policy without the costs that no variant was timed for on these rows, if any cost is left."""
    metrics = [scorecard.metrics_of(variant, job.rows.sha256) or {} for variant in variants]
    return with_measured_costs(job.policy, {key for values in metrics for key in values})


def scored_candidate(job: Job, variant: Variant) -> Candidate | None:
    """Return a variant as a candidate; None if it has no scorecard on the prompt set."""
    if scorecard.metrics_of(variant, job.rows.sha256) is None:
        return None
    return to_candidate(variant, job.rows, job.policy)


def to_candidate(variant: Variant, rows: PromptSet, promotion: Promotion) -> Candidate:
    """Return a scored variant as a candidate, with everything that is wrong with its scorecard.

    Variants are compared on the same rows, so a row that a variant could not take counts as not answered.
    """
    metrics = scorecard.metrics_of(variant, rows.sha256) or {}
    if total := metrics.get(CONTRACT_TOTAL.key):
        metrics[CONTRACT_RATE.key] = metrics[CONTRACT_PASSED.key] / total
    row_scores: dict[str, list[float]] = {}
    refusals: tuple[str, ...] = ()
    try:
        card = scorecard.read(variant, rows.sha256)
        metrics[SKIPPED.key] = float(sum(reason is not None for reason in card.skipped))
        faults = tuple(_scorecard_faults(card, metrics, rows, promotion))
        refusals = tuple(_refusals(card, promotion))
        row_scores = {name: counted(scores, name) for name, scores in card.scores.items()}
        metrics |= {f"{name}/mean": fmean(known(scores)) for name, scores in row_scores.items() if known(scores)}
    except StepError as error:
        faults = tuple(fault.rstrip(".") for fault in error.faults)
    return Candidate(variant.name, variant.model_id, variant.fingerprint, metrics, row_scores, faults, refusals)


def _scorecard_faults(
    card: Scorecard, metrics: dict[str, float], rows: PromptSet, promotion: Promotion
) -> Iterator[str]:
    """Yield how a scorecard contradicts the prompt set, or its own metrics on the model."""
    if card.ids != [row.id for row in rows.rows]:
        yield "its scorecard is of other rows"
    scores = card.scores.get(row_metric(promotion.metric), [])
    answered = [score for score in scores if score is not None]
    logged = metrics.get(metric_key(promotion.metric))
    if promotion.less_is_better and len(answered) < len(scores):
        # A skipped row scores 0, which would be the best score.
        yield f"it skipped {len(scores) - len(answered)} rows, which have no score where less is better"
    if answered and logged is not None and not _agrees(logged, scores, answered):
        # MLflow stores a NaN on a model as 0.
        yield f"{promotion.metric} is {logged:g}, and {fmean(answered):g} over its rows"


def _agrees(logged: float, scores: list[float | None], answered: list[float]) -> bool:
    """Return True if a logged mean is that of the rows. Earlier evaluations left skipped rows out."""
    means = sum(answered) / len(scores), fmean(answered)
    return any(math.isclose(mean, logged, abs_tol=1e-6) for mean in means)


def _refusals(card: Scorecard, promotion: Promotion) -> Iterator[str]:
    """Yield why a variant must not be promoted, whatever its scores: it gave no answer, or too many errors."""
    errors = [error for error in card.errors if error]
    if not any(is_readable(answer or "") for answers in [card.answers, *card.repeats] for answer in answers):
        first = next(filter(None, [*card.errors, *card.skipped]), "every answer is empty")
        yield f"it answered none of {len(card.ids)} rows ({first.rstrip('.')})"
    elif len(errors) > promotion.max_errors:
        yield f"{len(errors)} rows have an error, more than promotion.max_errors={promotion.max_errors}: {errors[0]}"
