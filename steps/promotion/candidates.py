"""Who takes part in a promotion: the READY variants with a scorecard for the prompt set, and the champion."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from steps import evaluate
from steps.config.schema import EvaluateConfig, Evaluation, Promotion, RegisterConfig
from steps.errors import StepError
from steps.evaluation import report, scorecard, scores, speed
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.output import echo
from steps.promotion import admission
from steps.promotion.rank import Candidate, metric_key, policy_faults, row_metric
from steps.promotion.registry import Registry
from steps.store import runs
from steps.store.names import FINGERPRINT
from steps.store.variants import Variant, as_variant, find_variants

SCORE_ONE = "Score them with `mlflow run . -e evaluate` (or `python -m steps.evaluate`)."
TIMED = ("speed/", "memory/")
BUILD_ONE = "Make one with `mlflow run . -e build` (or `python -m steps.build`)."


@dataclass(frozen=True)
class Field:
    """The candidates, their variants by model id, and why other variants do not take part.

    `champion` is the candidate that is champion now; `vacant` says why there is none.
    """

    candidates: list[Candidate]
    variants: dict[str, Variant]
    left_out: list[str]
    champion: Candidate | None
    vacant: str

    def of(self, model_id: str) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.model_id == model_id)


def gather(
    client: Any, config: RegisterConfig, rows: PromptSet, registry: Registry, checked: dict[str, list[str]]
) -> Field:
    """Read every candidate as it is now; scores the champion first where it has no scorecard for these rows.

    `checked` has the faults of the models whose files were read already: what is broken does not take part.
    """
    variants = {variant.model_id: variant for variant in find_variants(client, runs.experiment_id())}
    champion, vacant = _champion(client, registry, variants, checked)
    if champion:
        variants[champion.model_id] = champion
    whole, left_out = _without_broken(list(variants.values()), checked)
    if not whole:
        raise StepError(f"There is no variant to register in this experiment. {BUILD_ONE}", *_sentences(left_out))
    allowed, rejected = _without_rejected(whole, registry, champion, config.promotion)
    left_out += rejected
    known = {
        variant.model_id: candidate(variant, rows, config.promotion)
        for variant in _one_of_each(_scored(allowed, rows), registry, champion)
    }
    # What the champion can still be timed for is told afterwards.
    asked = _without_measured(config.promotion) if champion else config.promotion
    if known and (faults := policy_faults(list(known.values()), asked)):
        raise StepError(*faults)
    if champion:
        champion, found = comparable(client, champion, known.get(champion.model_id), rows, config, checked)
        variants[champion.model_id], known[champion.model_id] = champion, found
    if not known:
        raise StepError(*_nobody(rows, allowed, left_out))
    left_out += [
        f"{variant.name} has no scorecard for these rows"
        for variant in allowed
        if variant.model_id not in known and variant not in _scored(allowed, rows)
    ]
    return Field(list(known.values()), variants, left_out, known.get(champion.model_id) if champion else None, vacant)


def _champion(
    client: Any, registry: Registry, variants: dict[str, Variant], checked: dict[str, list[str]]
) -> tuple[Variant | None, str]:
    """The variant that is champion; None where nobody is, or its model is lost or broken, and why."""
    from mlflow.exceptions import MlflowException

    version = registry.champion
    if version is None:
        return None, "there was no champion"
    try:
        found = variants.get(version.model_id) or as_variant(client.get_logged_model(version.model_id))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None, f"the model of the champion (version {version.number}) was deleted"
    if wrong := admission.faults(client, found, checked):
        variants[found.model_id] = found
        return None, f"the champion {found.name} (version {version.number}) is broken: {', '.join(wrong)}"
    return found, ""


def comparable(
    client: Any,
    variant: Variant,
    known: Candidate | None,
    rows: PromptSet,
    config: RegisterConfig,
    checked: dict[str, list[str]],
) -> tuple[Variant, Candidate]:
    """A registered variant as a candidate; scores it first where it has no scorecard that the policy can use."""
    if known and not _unusable(known, config.promotion):
        return variant, known
    if config.dry_run:
        raise StepError(
            f"{variant.name} has no scorecard for this prompt set that the policy can use, and a dry run "
            f"writes none. Score it: `python -m steps.evaluate run_id={variant.run_id}`."
        )
    admission.refuse_unless_whole(client, variant, checked)
    if known is None or known.faults or not all(map(_is_measured, _lacking(known, config.promotion))):
        _score(client, variant, rows, config)
        variant, known = _read_again(client, variant, rows, config)
    if any(map(_is_measured, _lacking(known, config.promotion))):
        _time(client, variant, rows, config)
        variant, known = _read_again(client, variant, rows, config)
    if faults := _unusable(known, config.promotion):
        raise StepError(f"{variant.name} is registered and cannot be compared: {', '.join(faults)}.")
    return variant, known


def _read_again(client: Any, variant: Variant, rows: PromptSet, config: RegisterConfig) -> tuple[Variant, Candidate]:
    """A variant as it is by now."""
    variant = as_variant(client.get_logged_model(variant.model_id))
    return variant, candidate(variant, rows, config.promotion)


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
    metrics = list(dict.fromkeys([*Evaluation().metrics, row_metric(config.promotion.metric)]))
    echo(f"{variant.name} is registered and has no scorecard for {rows.name}: scoring it first.")
    settings = EvaluateConfig(config.prompt_set, Evaluation(metrics=metrics), variant.run_id)
    evaluate.score_variant(client, variant, rows, scores.load_metrics(scores.names(settings)), settings)


def _time(client: Any, variant: Variant, rows: PromptSet, config: RegisterConfig) -> None:
    """Have evaluate finish the report of one variant with its speed and memory, unless they are there.

    They belong to the prompt set whose questions are asked.
    """
    settings = EvaluateConfig(config.prompt_set, Evaluation(), variant.run_id)
    if not report.is_untimed(variant, rows, settings):
        return
    echo(f"{variant.name} is registered and was not timed on {rows.name}: timing it first, as evaluate does.")
    with speed.bench([variant]) as bench:
        report.finish(client, variant, rows, settings, bench)


def _without_broken(variants: list[Variant], checked: dict[str, list[str]]) -> tuple[list[Variant], list[str]]:
    """The variants whose files are whole, as far as they were read, and what to do with the others."""
    broken = {variant.model_id: found for variant in variants if (found := checked.get(variant.model_id))}
    refused = [
        admission.refusal(variant, broken[variant.model_id]).rstrip(".")
        for variant in variants
        if variant.model_id in broken
    ]
    return [variant for variant in variants if variant.model_id not in broken], refused


def _without_rejected(
    variants: list[Variant], registry: Registry, champion: Variant | None, promotion: Promotion
) -> tuple[list[Variant], list[str]]:
    """The variants of which no version was rejected, and what was wrong with the others; the champion stays.

    A variant that was built again has the same fingerprint and is rejected with the first one.
    """
    rejected = {version.tags.get(FINGERPRINT): version for version in registry.versions if version.rejected}
    allowed, reasons = [], []
    for variant in variants:
        version = rejected.get(variant.tags[FINGERPRINT])
        if version is None or variant == champion or promotion.retry_rejected:
            allowed.append(variant)
        else:
            reasons.append(f"{variant.name} (version {version.number}) was rejected: {version.rejected}")
    return allowed, reasons


def _one_of_each(variants: list[Variant], registry: Registry, champion: Variant | None) -> list[Variant]:
    """One variant of each fingerprint, oldest first: the champion's, else a registered one, else the newest."""

    def preference(variant: Variant) -> tuple[bool, bool]:
        return variant == champion, bool(registry.of_model(variant.model_id))

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
    return [*known.faults, *(f"it has no {name}" for name in _lacking(known, promotion))]


def _lacking(known: Candidate, promotion: Promotion) -> list[str]:
    """What the policy asks for and the scorecard has not."""
    asked = dict.fromkeys([promotion.metric, *promotion.prefer, *promotion.limits])
    return [name for name in asked if metric_key(name) not in known.metrics]


def _without_measured(promotion: Promotion) -> Promotion:
    """The policy without what is measured."""
    limits = {name: limit for name, limit in promotion.limits.items() if not _is_measured(name)}
    return replace(promotion, prefer=[name for name in promotion.prefer if not _is_measured(name)], limits=limits)


def _is_measured(name: str) -> bool:
    """Whether a metric is what `evaluate.speed` measures."""
    return metric_key(name).startswith(TIMED)


def _nobody(rows: PromptSet, variants: list[Variant], left_out: list[str]) -> list[str]:
    """Nobody is left; who was scored was rejected or is broken, or was scored on other rows."""
    if left_out:
        return [
            "No scored candidate is left (promotion.retry_rejected=true asks rejected ones again):",
            *_sentences(left_out),
        ]
    before = any(scorecard.is_scored_at_all(variant) for variant in variants)
    changed = f" The scorecards there are of other rows: {rows.name} has changed since." if before else ""
    return [f"No variant has a scorecard for {rows.name} (sha256 {rows.sha256[:16]}…).{changed} {SCORE_ONE}"]


def _sentences(left_out: list[str]) -> list[str]:
    return [f"{sentence}." for sentence in left_out]
