"""Who takes part in a promotion: the READY variants with a scorecard for the prompt set, and the champion."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from steps import evaluate, tracking
from steps.errors import StepError
from steps.evaluation import scorecard, scores
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.promotion.admission import refuse_unless_whole
from steps.promotion.rank import Candidate, metric_key, policy_faults, row_metric
from steps.promotion.registry import Registry
from steps.schema import EvaluateConfig, Evaluation, Promotion, RegisterConfig
from steps.tracking import FINGERPRINT, Variant, as_variant

SCORE_ONE = "Score them with `mlflow run . -e evaluate` (or `python -m steps.evaluate`)."
BUILD_ONE = "Make one with `mlflow run . -e build` (or `python -m steps.build`)."


@dataclass(frozen=True)
class Field:
    """The candidates, their variants by model id, and why other variants do not take part."""

    candidates: list[Candidate]
    variants: dict[str, Variant]
    left_out: list[str]

    def of(self, model_id: str | None) -> Candidate | None:
        return next((candidate for candidate in self.candidates if candidate.model_id == model_id), None)


def gather(client: Any, config: RegisterConfig, rows: PromptSet, registry: Registry) -> Field:
    """Read every candidate as it is now; scores the champion first where it has no scorecard for these rows."""
    variants = {variant.model_id: variant for variant in tracking.variants(client, tracking.experiment_id())}
    champion = registry.champion.model_id if registry.champion else None
    if champion and champion not in variants:
        variants[champion] = as_variant(client.get_logged_model(champion))
    if not variants:
        raise StepError(f"There is no variant to register in this experiment. {BUILD_ONE}")
    allowed, left_out = _without_rejected(list(variants.values()), registry, config.promotion)
    known = {
        variant.model_id: candidate(variant, rows, config.promotion)
        for variant in _one_of_each(_scored(allowed, rows), registry)
    }
    if known and (faults := policy_faults(list(known.values()), config.promotion)):
        raise StepError(*faults)
    if champion:
        variants[champion], known[champion] = comparable(client, variants[champion], known.get(champion), rows, config)
    if not known:
        raise StepError(*_nobody(rows, allowed, left_out))
    without = [variant for variant in allowed if variant not in _scored(allowed, rows) and variant.model_id != champion]
    left_out += [f"{variant.name} has no scorecard for these rows" for variant in without]
    return Field(list(known.values()), variants, left_out)


def comparable(
    client: Any, variant: Variant, known: Candidate | None, rows: PromptSet, config: RegisterConfig
) -> tuple[Variant, Candidate]:
    """A registered variant as a candidate; scores it first where it has no scorecard that the policy can use."""
    if known and not _unusable(known, config.promotion):
        return variant, known
    if config.dry_run:
        raise StepError(
            f"{variant.name} has no scorecard for this prompt set that the policy can use, and a dry run "
            f"writes none. Score it: `python -m steps.evaluate run_id={variant.run_id}`."
        )
    _score(client, variant, rows, config)
    variant = as_variant(client.get_logged_model(variant.model_id))
    known = candidate(variant, rows, config.promotion)
    if faults := _unusable(known, config.promotion):
        raise StepError(f"{variant.name} is registered and cannot be compared: {', '.join(faults)}.")
    return variant, known


def candidate(variant: Variant, rows: PromptSet, promotion: Promotion) -> Candidate:
    """A variant with a scorecard as a candidate; what is wrong with its rows are its faults.

    A row that it could not take counts as one that it did not answer: variants are compared on the same rows.
    """
    metrics = scorecard.scores(variant, rows.sha256) or {}
    if metrics.get("contract/total"):
        metrics |= {"contract/rate": metrics["contract/passed"] / metrics["contract/total"]}
    of_rows: dict[str, list[float]] = {}
    try:
        card = scorecard.read(variant, rows.sha256)
        faults = tuple(_row_faults(card, metrics, rows, promotion))
        of_rows = {name: [score or 0.0 for score in scores] for name, scores in card.scores.items()}
        metrics |= {f"{name}/mean": sum(scores) / len(scores) for name, scores in of_rows.items() if scores}
    except StepError as error:
        faults = tuple(fault.rstrip(".") for fault in error.faults)
    return Candidate(variant.name, variant.model_id, variant.tags[FINGERPRINT], metrics, of_rows, faults)


def _row_faults(card: Scorecard, metrics: dict[str, float], rows: PromptSet, promotion: Promotion) -> Iterator[str]:
    """What is wrong with the rows of a scorecard: others, or not those that its mean is of."""
    if card.ids != [row.id for row in rows.rows]:
        yield "its scorecard is of other rows"
    answered = [score for score in card.scores.get(row_metric(promotion.metric), []) if score is not None]
    kept = metrics.get(metric_key(promotion.metric))
    if answered and kept is not None and not math.isclose(fmean(answered), kept, abs_tol=1e-6):
        # MLflow keeps a NaN on a model as 0.
        yield f"{promotion.metric} is {kept:g}, and {fmean(answered):g} over its rows"


def _score(client: Any, variant: Variant, rows: PromptSet, config: RegisterConfig) -> None:
    """Have evaluate score one variant, in the policy's metric beside the usual ones."""
    refuse_unless_whole(client, variant)
    usual = Evaluation()
    names = list(dict.fromkeys([*usual.metrics, row_metric(config.promotion.metric)]))
    tracking.say(f"{variant.name} is registered and has no scorecard for {rows.name}: scoring it first.")
    settings = EvaluateConfig(config.prompt_set, Evaluation(metrics=names), variant.run_id)
    evaluate.score_variant(client, variant, rows, scores.load_metrics(names), settings)


def _without_rejected(
    variants: list[Variant], registry: Registry, promotion: Promotion
) -> tuple[list[Variant], list[str]]:
    """The variants whose version was not rejected, and what was wrong with the others; the champion stays."""
    allowed, rejected = [], []
    for variant in variants:
        version = registry.of_model(variant.model_id)
        if version is None or not version.rejected or version == registry.champion or promotion.retry_rejected:
            allowed.append(variant)
        else:
            rejected.append(f"{variant.name} (version {version.number}) was rejected: {version.rejected}")
    return allowed, rejected


def _one_of_each(variants: list[Variant], registry: Registry) -> list[Variant]:
    """One variant of each fingerprint, oldest first: the champion's, else a registered one, else the newest."""
    champion = registry.champion.model_id if registry.champion else None

    def preference(variant: Variant) -> tuple[bool, bool]:
        return variant.model_id == champion, registry.of_model(variant.model_id) is not None

    chosen: dict[str, Variant] = {}
    for variant in variants:
        twin = chosen.get(variant.tags[FINGERPRINT])
        if twin is None or preference(variant) >= preference(twin):
            chosen[variant.tags[FINGERPRINT]] = variant
    return [variant for variant in variants if variant in chosen.values()]


def _scored(variants: list[Variant], rows: PromptSet) -> list[Variant]:
    return [variant for variant in variants if scorecard.scores(variant, rows.sha256) is not None]


def _unusable(known: Candidate, promotion: Promotion) -> list[str]:
    """Why a scorecard cannot be compared by the policy: rows that cannot be read, metrics that it has not."""
    asked = dict.fromkeys([promotion.metric, *promotion.prefer, *promotion.limits])
    return [*known.faults, *(f"it has no {name}" for name in asked if metric_key(name) not in known.metrics)]


def _nobody(rows: PromptSet, variants: list[Variant], rejected: list[str]) -> list[str]:
    """Nobody is left; who was scored was rejected, or was scored on other rows."""
    if rejected:
        return ["Every scored candidate was rejected before (promotion.retry_rejected=true asks again):", *rejected]
    before = any(key.startswith(scorecard.TAG) for variant in variants for key in variant.tags)
    changed = f" The scorecards there are of other rows: {rows.name} has changed since." if before else ""
    return [f"No variant has a scorecard for {rows.name} (sha256 {rows.sha256[:16]}…).{changed} {SCORE_ONE}"]
