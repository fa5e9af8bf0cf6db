"""Rank variants by a promotion policy: hard limits, then the metric, then the cheaper one. Pure functions."""

import math
from dataclasses import dataclass

from steps.errors import unknown
from steps.schema import Promotion


@dataclass(frozen=True)
class Candidate:
    """A variant with its metrics on the policy's prompt set."""

    name: str
    model_id: str
    fingerprint: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Ranking:
    """Candidates within the limits, the best first, and what the others violate."""

    ranked: list[Candidate]
    violations: dict[str, list[str]]


def rank(candidates: list[Candidate], promotion: Promotion) -> Ranking:
    """Sort by the metric (more is better), then by each of `prefer` (less is better), then by age."""
    violations = {candidate.model_id: limit_faults(candidate, promotion.limits) for candidate in candidates}
    within = [candidate for candidate in candidates if not violations[candidate.model_id]]
    ranked = sorted(within, key=lambda candidate: sort_key(candidate, promotion))
    return Ranking(ranked, {model_id: faults for model_id, faults in violations.items() if faults})


def sort_key(candidate: Candidate, promotion: Promotion) -> tuple[float, ...]:
    """Smaller is better."""
    costs = [candidate.metrics[metric_key(name)] for name in promotion.prefer]
    return (-candidate.metrics[metric_key(promotion.metric)], *costs)


def limit_faults(candidate: Candidate, limits: dict[str, dict[str, float]]) -> list[str]:
    """Every limit that a candidate violates."""
    faults = []
    for name, limit in limits.items():
        value = candidate.metrics[metric_key(name)]
        if value < limit.get("min", -math.inf):
            faults.append(f"{name} {value:g} is below {limit['min']:g}")
        if value > limit.get("max", math.inf):
            faults.append(f"{name} {value:g} is above {limit['max']:g}")
    return faults


def missing_metrics(candidates: list[Candidate], promotion: Promotion) -> list[str]:
    """What the policy asks for and a candidate does not have, by config key."""
    asked = {"promotion.metric": [promotion.metric], "promotion.prefer": promotion.prefer}
    asked["promotion.limits"] = list(promotion.limits)
    known = sorted(set.intersection(*(set(candidate.metrics) for candidate in candidates)))
    return [
        f"{key}: {unknown('metric', name, known)}"
        for key, names in asked.items()
        for name in names
        if metric_key(name) not in known
    ]


def metric_key(name: str) -> str:
    """The full key of a metric: `answer_match` means `answer_match/mean`."""
    return name if "/" in name else f"{name}/mean"
