"""The candidates of a promotion: the READY variants with a scorecard on the prompt set, and the champion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from steps.config.schema import Promotion, RegisterConfig
from steps.errors import StepError
from steps.evaluation import scorecard
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.promotion.gate import NO_CHAMPION
from steps.promotion.job import Job, broken_model
from steps.promotion.missing_scorecard import MissingScorecard, find_missing
from steps.promotion.rank import Candidate, lacking_metrics, policy_faults
from steps.promotion.registry import Registry, Version, is_missing, read
from steps.store import runs
from steps.store.names import (
    CONTRACT_PASSED,
    CONTRACT_RATE,
    CONTRACT_TOTAL,
    FINGERPRINT,
    is_timed,
    metric_key,
    row_metric,
)
from steps.store.variants import Variant, find_variants, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCORE_THEM = "Score them with `mlflow run . -e evaluate` (or `python -m steps.evaluate`)."
BUILD_ONE = "Build one with `mlflow run . -e build` (or `python -m steps.build`)."


@dataclass(frozen=True)
class Contest:
    """Everyone who competes, read at one moment.

    Attributes:
        candidates: The variants that compete, oldest first.
        variants: All variants by model id.
        left_out: A sentence, without its full stop, for each variant that does not compete.
        champion: The candidate that is champion now.
        vacancy: Why there is no champion; "" if there is one.
    """

    candidates: list[Candidate]
    variants: dict[str, Variant]
    left_out: list[str]
    champion: Candidate | None
    vacancy: str

    def candidate(self, model_id: str) -> Candidate:
        """Return the candidate with this model."""
        return next(candidate for candidate in self.candidates if candidate.model_id == model_id)


@dataclass(frozen=True)
class Incumbent:
    """The variant that the alias `champion` names.

    Attributes:
        variant: None if there is no champion or its model was deleted.
        vacancy: Why it does not compete as the champion; "" if it does.
    """

    variant: Variant | None
    vacancy: str = ""

    @property
    def champion(self) -> Variant | None:
        """The variant, if it competes as the champion."""
        return None if self.vacancy else self.variant


def gather(job: Job, registry: Registry) -> Contest:
    """Read every candidate as it is now.

    Raises:
        StepError: No candidate is left, the policy names a metric that none has, or the champion has no scorecard
            that the policy can use.
    """
    variants = {variant.model_id: variant for variant in find_variants(job.client, runs.experiment_id())}
    incumbent = read_incumbent(job, registry)
    if incumbent.variant:
        variants.setdefault(incumbent.variant.model_id, incumbent.variant)
    champion_id = incumbent.champion.model_id if incumbent.champion else None
    intact, left_out = _without_broken(job, list(variants.values()))
    if not intact:
        raise StepError(f"There is no variant to register in this experiment. {BUILD_ONE}", *_sentences(left_out))
    allowed, rejected = _without_rejected(job, intact, registry, champion_id)
    scored = [variant for variant in allowed if scorecard.metrics_of(variant, job.rows.sha256) is not None]
    competing = {
        variant.model_id: to_candidate(variant, job.rows, job.policy)
        for variant in _one_of_each(scored, registry, champion_id)
    }
    _refuse_incomparable(job, registry, incumbent.champion, competing)
    left_out += rejected
    if not competing:
        raise StepError(*_no_candidate(job, allowed, left_out))
    left_out += [f"{variant.name} has no scorecard for these rows" for variant in allowed if variant not in scored]
    champion = competing[champion_id] if champion_id else None
    return Contest(list(competing.values()), variants, left_out, champion, incumbent.vacancy)


def missing_scorecard(client: MlflowClient, config: RegisterConfig, rows: PromptSet) -> MissingScorecard | None:
    """Return what to evaluate before the champion can be compared on a prompt set.

    Returns:
        None if its scorecard is usable, or if there is no champion, or its model was deleted or is broken.
    """
    job = Job(client, config, rows)
    version = read(client, config.registered_model).champion
    champion = find_variant(client, version.model_id) if version else None
    if version is None or champion is None:
        return None
    missing = _find_missing(job, version, champion, scored_candidate(job, champion))
    # Last, because reading all files of a model takes long.
    return None if missing is None or job.faults(champion) else missing


def read_incumbent(job: Job, registry: Registry) -> Incumbent:
    """Return the variant that is champion, with why it cannot compete if its model is deleted or broken."""
    version = registry.champion
    if version is None:
        return Incumbent(None, NO_CHAMPION)
    variant = find_variant(job.client, version.model_id)
    if variant is None:
        return Incumbent(None, f"the model of the champion (version {version.number}) was deleted")
    if faults := job.faults(variant):
        return Incumbent(
            variant, f"the champion {variant.name} (version {version.number}) is broken: {', '.join(faults)}"
        )
    return Incumbent(variant)


def find_variant(client: MlflowClient, model_id: str) -> Variant | None:
    """Return the variant with a LoggedModel; None if the model was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return read_variant(client, model_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


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
    try:
        card = scorecard.read(variant, rows.sha256)
        faults = tuple(_scorecard_faults(card, metrics, rows, promotion))
        row_scores = {name: [score or 0.0 for score in scores] for name, scores in card.scores.items()}
        metrics |= {f"{name}/mean": sum(scores) / len(scores) for name, scores in row_scores.items() if scores}
    except StepError as error:
        faults = tuple(fault.rstrip(".") for fault in error.faults)
    return Candidate(variant.name, variant.model_id, variant.fingerprint, metrics, row_scores, faults)


def _scorecard_faults(
    card: Scorecard, metrics: dict[str, float], rows: PromptSet, promotion: Promotion
) -> Iterator[str]:
    """Yield how a scorecard contradicts the prompt set, or its own metrics on the model."""
    if card.ids != [row.id for row in rows.rows]:
        yield "its scorecard is of other rows"
    answered = [score for score in card.scores.get(row_metric(promotion.metric), []) if score is not None]
    logged = metrics.get(metric_key(promotion.metric))
    if answered and logged is not None and not math.isclose(fmean(answered), logged, abs_tol=1e-6):
        # MLflow stores a NaN on a model as 0.
        yield f"{promotion.metric} is {logged:g}, and {fmean(answered):g} over its rows"


def _refuse_incomparable(
    job: Job, registry: Registry, champion: Variant | None, competing: dict[str, Candidate]
) -> None:
    """Raise StepError if the policy names a metric that no candidate has, or that the champion lacks."""
    version, candidate, missing = registry.champion, None, None
    if champion and version:
        candidate = competing.get(champion.model_id)
        missing = _find_missing(job, version, champion, candidate)
    # If nobody has been timed, the sentence about the champion says what to do.
    policy = _without_timed(job.policy) if missing else job.policy
    if competing and (unknown := policy_faults(list(competing.values()), policy)):
        raise StepError(*unknown)
    if missing:
        raise StepError(missing.sentence)
    if candidate and version and (lacking := lacking_metrics(candidate, job.policy)):
        raise StepError(
            f"{candidate.name} is the champion (version {version.number}) and cannot be compared: "
            f"it has no {', '.join(lacking)}."
        )


def _find_missing(
    job: Job, version: Version, champion: Variant, candidate: Candidate | None
) -> MissingScorecard | None:
    role = f"the champion (version {version.number})"
    return find_missing(champion, candidate, role, job.config.prompt_set, job.rows.name, job.policy)


def _without_broken(job: Job, variants: list[Variant]) -> tuple[list[Variant], list[str]]:
    """Split off the variants that are known to be broken, with a sentence about each."""
    broken = {variant.model_id: faults for variant in variants if (faults := job.integrity.known_faults(variant))}
    intact = [variant for variant in variants if variant.model_id not in broken]
    sentences = [broken_model(variant, broken[variant.model_id]) for variant in variants if variant.model_id in broken]
    return intact, sentences


def _without_rejected(
    job: Job, variants: list[Variant], registry: Registry, champion_id: str | None
) -> tuple[list[Variant], list[str]]:
    """Split off the variants with a rejected version, with a sentence about each; the champion always stays.

    A variant that was built again has the same fingerprint, and is rejected together with the first one.
    """
    rejected = {version.tags.get(FINGERPRINT): version for version in registry.versions if version.rejected}
    allowed, sentences = [], []
    for variant in variants:
        version = rejected.get(variant.fingerprint)
        if version is None or variant.model_id == champion_id or job.policy.retry_rejected:
            allowed.append(variant)
        else:
            sentences.append(f"{variant.name} (version {version.number}) was rejected: {version.rejected}")
    return allowed, sentences


def _one_of_each(variants: list[Variant], registry: Registry, champion_id: str | None) -> list[Variant]:
    """Return one variant of each fingerprint, oldest first: the champion, or a registered one, or the newest."""

    def preference(variant: Variant) -> tuple[bool, bool]:
        return variant.model_id == champion_id, bool(registry.of_model(variant.model_id))

    chosen: dict[str, Variant] = {}
    for variant in variants:
        twin = chosen.get(variant.fingerprint)
        if twin is None or preference(variant) >= preference(twin):
            chosen[variant.fingerprint] = variant
    return [variant for variant in variants if chosen[variant.fingerprint] is variant]


def _without_timed(promotion: Promotion) -> Promotion:
    """Return the policy without the metrics that are timed."""
    limits = {name: limit for name, limit in promotion.limits.items() if not is_timed(name)}
    return replace(promotion, prefer=[name for name in promotion.prefer if not is_timed(name)], limits=limits)


def _no_candidate(job: Job, variants: list[Variant], left_out: list[str]) -> list[str]:
    """Explain why no candidate remains: rejected, damaged, or scored on a different prompt set."""
    if left_out:
        return [
            "No scored candidate is left (promotion.retry_rejected=true gives rejected ones another chance):",
            *_sentences(left_out),
        ]
    scored_before = any(scorecard.is_scored_at_all(variant) for variant in variants)
    changed = f" Older scorecards are of other rows: {job.rows.name} has changed since." if scored_before else ""
    return [f"No variant has a scorecard for {job.rows.name} (sha256 {job.rows.sha256[:16]}…).{changed} {SCORE_THEM}"]


def _sentences(left_out: list[str]) -> list[str]:
    return [f"{sentence}." for sentence in left_out]
