"""Rank variants by a promotion policy: hard limits, then the metric, then the cheapest of those tied. Pure functions.

Tied is who is not significantly worse than the highest score: a paired bootstrap over the same rows at `alpha`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from steps.config.schema import Promotion
from steps.errors import unknown
from steps.evaluation.statistics import Difference, difference
from steps.output import suppress_output

# What people say for the metrics that a policy is mostly about.
SHORT = {
    "latency": "speed/latency_p95_ms",
    "memory": "memory/peak_mb",
    "bytes": "size/bytes",
    "contract": "contract/rate",
}
# Of every other metric less is better.
MORE_IS_BETTER = ("/mean", "/ci_low", "/ci_high", "tokens_per_second", "/bandwidth_fraction", "/rate", "/passed")
# What has these is never 0: MLflow keeps a NaN on a model as 0.
MEASURED = ("speed/", "memory/", "size/")


@dataclass(frozen=True)
class Candidate:
    """A variant with its metrics on the policy's prompt set, and the scores of every row by metric."""

    name: str
    model_id: str
    fingerprint: str
    metrics: dict[str, float]
    rows: dict[str, list[float]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """Candidates within the limits, the best first; who is tied with the highest score; why the others are refused.

    `differences` holds score minus highest score of every ranked candidate, by model id.
    """

    ranked: list[Candidate]
    refused: dict[str, list[str]]
    tied: tuple[str, ...] = ()
    differences: dict[str, Difference] = field(default_factory=dict)


def rank(candidates: list[Candidate], promotion: Promotion) -> Ranking:
    """The cheapest of the tied first (`prefer` in order), then the others by score; where all is alike the older."""
    refused = {candidate.model_id: faults_of(candidate, promotion) for candidate in candidates}
    within = [candidate for candidate in candidates if not refused[candidate.model_id]]
    refused = {model_id: faults for model_id, faults in refused.items() if faults}
    if not within:
        return Ranking([], refused)
    highest = max(within, key=lambda candidate: score(candidate, promotion))
    differences = {candidate.model_id: compared(candidate, highest, promotion) for candidate in within}
    tied = [candidate for candidate in within if not differences[candidate.model_id].worse]
    others = [candidate for candidate in within if candidate not in tied]
    ranked = sorted(tied, key=_cheapest(promotion)) + sorted(others, key=_highest(promotion))
    return Ranking(ranked, refused, tuple(candidate.model_id for candidate in tied), differences)


def score(candidate: Candidate, promotion: Promotion) -> float:
    """The value of the policy's metric."""
    return candidate.metrics[metric_key(promotion.metric)]


def costs(candidate: Candidate, promotion: Promotion) -> list[float]:
    """What `prefer` asks for, in its order; smaller is better."""
    keys = map(metric_key, promotion.prefer)
    return [-candidate.metrics[key] if _more_is_better(key) else candidate.metrics[key] for key in keys]


def compared(ours: Candidate, theirs: Candidate, promotion: Promotion) -> Difference:
    """Ours minus theirs in the policy's metric, paired by row."""
    name = row_metric(promotion.metric)
    return difference(ours.rows[name], theirs.rows[name], promotion.alpha)


def faults_of(candidate: Candidate, promotion: Promotion) -> list[str]:
    """Everything that keeps a candidate out: no value, no number, no row scores, every limit that it breaks."""
    faults = list(candidate.faults)
    for name in dict.fromkeys([promotion.metric, *promotion.prefer, *promotion.limits]):
        value = candidate.metrics.get(metric_key(name))
        if value is None:
            faults.append(f"it has no {name}")
        elif not math.isfinite(value):
            faults.append(f"{name} is {value}")
        elif value == 0 and metric_key(name).startswith(MEASURED):
            faults.append(f"{name} is 0, so it was not measured")
    scores = candidate.rows.get(row_metric(promotion.metric), [])
    if not candidate.faults and (not scores or not all(map(math.isfinite, scores))):
        faults.append(f"not every row has a score of {promotion.metric}")
    return faults + list(_limit_faults(candidate, promotion.limits))


def policy_faults(candidates: list[Candidate], promotion: Promotion) -> list[str]:
    """What the policy asks for and no candidate has, by config key."""
    asked = {"promotion.metric": [promotion.metric], "promotion.prefer": promotion.prefer}
    asked["promotion.limits"] = list(promotion.limits)
    known = sorted(set().union(*(candidate.metrics for candidate in candidates)))
    faults = [
        f"{key}: {unknown('metric', name, known)}"
        for key, names in asked.items()
        for name in names
        if metric_key(name) not in known
    ]
    if not metric_key(promotion.metric).endswith("/mean") and not faults:
        means = [key.removesuffix("/mean") for key in known if key.endswith("/mean")]
        faults.append(
            f"promotion.metric must be a metric of every row, got '{promotion.metric}'. Available: {', '.join(means)}."
        )
    return faults


def metric_key(name: str) -> str:
    """The full key of a metric: `answer_match` means `answer_match/mean`, `latency` means `speed/latency_p95_ms`."""
    return SHORT.get(name, name if "/" in name else f"{name}/mean")


def row_metric(name: str) -> str:
    """The name under which the rows' scores of a metric are kept."""
    return metric_key(name).removesuffix("/mean")


def _limit_faults(candidate: Candidate, limits: dict[str, dict[str, float]]) -> Iterator[str]:
    """Every limit that a candidate breaks; a value that is missing or no number is told elsewhere."""
    for name, limit in limits.items():
        value = candidate.metrics.get(metric_key(name), math.nan)
        for side, word in (("min", "below"), ("max", "above")):
            if side in limit and math.isfinite(value) and not _keeps(value, limit[side], side == "min"):
                yield f"{name} {value:g} is {word} {limit[side]:g}"


def _keeps(value: float, bound: float, at_least: bool) -> bool:
    """Whether a value keeps a bound, as MLflow's own validation of results judges it."""
    from mlflow import validate_evaluation_results
    from mlflow.models import EvaluationResult, MetricThreshold
    from mlflow.models.evaluation.validation import ModelValidationFailedException

    threshold = MetricThreshold(threshold=bound, greater_is_better=at_least)
    with suppress_output():
        try:
            validate_evaluation_results({"value": threshold}, EvaluationResult({"value": value}, {}))
        except ModelValidationFailedException:
            return False
    return True


def _more_is_better(key: str) -> bool:
    return key.endswith(MORE_IS_BETTER)


def _cheapest(promotion: Promotion) -> Callable[[Candidate], list[float]]:
    return lambda candidate: [*costs(candidate, promotion), -score(candidate, promotion)]


def _highest(promotion: Promotion) -> Callable[[Candidate], list[float]]:
    return lambda candidate: [-score(candidate, promotion), *costs(candidate, promotion)]
