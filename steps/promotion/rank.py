"""Rank variants by a promotion policy: hard limits, then the metric, then the cost of those that tie. Pure functions.

Variants that are not significantly worse than the highest score count as tied: a paired bootstrap over the same rows
at level `alpha`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from steps.config.schema import Promotion
from steps.errors import unknown
from steps.evaluation.statistics import Difference, difference
from steps.store.names import MEASURED, metric_key, more_is_better, row_metric


@dataclass(frozen=True)
class Candidate:
    """A variant that competes.

    Attributes:
        metrics: Its metrics on the prompt set, by full key.
        rows: By metric, the score of every row. A row that the variant could not take has the score 0.
        faults: Why its scorecard cannot be used.
        refusals: Why it must not be promoted, although its scorecard can be used.
    """

    name: str
    model_id: str
    fingerprint: str
    metrics: dict[str, float]
    rows: dict[str, list[float]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """The order of the candidates.

    Attributes:
        ranked: The candidates that the policy allows, the best first.
        refused: By model id, why each of the others is refused.
        tied: The model ids of those that tie with the highest score.
        differences: By model id, the score of each ranked candidate minus the highest score.
    """

    ranked: list[Candidate]
    refused: dict[str, list[str]]
    tied: tuple[str, ...] = ()
    differences: dict[str, Difference] = field(default_factory=dict)


def rank(candidates: list[Candidate], promotion: Promotion) -> Ranking:
    """Rank candidates: the tied ones first, by `prefer` in order, then the others by score; older ones win a draw."""
    faults = {candidate.model_id: faults_of(candidate, promotion) for candidate in candidates}
    refused = {model_id: sentences for model_id, sentences in faults.items() if sentences}
    allowed = [candidate for candidate in candidates if candidate.model_id not in refused]
    if not allowed:
        return Ranking([], refused)
    highest = max(allowed, key=lambda candidate: score(candidate, promotion))
    differences = {candidate.model_id: score_difference(candidate, highest, promotion) for candidate in allowed}
    tied = [candidate for candidate in allowed if not differences[candidate.model_id].worse]
    others = [candidate for candidate in allowed if candidate not in tied]
    ranked = sorted(tied, key=_by_cost(promotion)) + sorted(others, key=_by_score(promotion))
    return Ranking(ranked, refused, tuple(candidate.model_id for candidate in tied), differences)


def score(candidate: Candidate, promotion: Promotion) -> float:
    """Return the value of the policy's metric."""
    return candidate.metrics[metric_key(promotion.metric)]


def costs(candidate: Candidate, promotion: Promotion) -> list[float]:
    """Return the values of the metrics in `prefer`, in order, with their sign set so that smaller is better."""
    keys = map(metric_key, promotion.prefer)
    return [-candidate.metrics[key] if more_is_better(key) else candidate.metrics[key] for key in keys]


def score_difference(ours: Candidate, theirs: Candidate, promotion: Promotion) -> Difference:
    """Return ours minus theirs in the policy's metric, paired by row."""
    name = row_metric(promotion.metric)
    return difference(ours.rows[name], theirs.rows[name], promotion.alpha)


def asked_metrics(promotion: Promotion) -> list[str]:
    """Return every metric that the policy names, without repetition."""
    return list(dict.fromkeys([promotion.metric, *promotion.prefer, *promotion.limits]))


def lacking_metrics(candidate: Candidate, promotion: Promotion) -> list[str]:
    """Return the metrics that the policy names and the candidate does not have."""
    return [name for name in asked_metrics(promotion) if metric_key(name) not in candidate.metrics]


def faults_of(candidate: Candidate, promotion: Promotion) -> list[str]:
    """Return every reason to refuse a candidate: an unusable scorecard, a missing value, a limit that it breaks."""
    faults = [*candidate.faults, *candidate.refusals]
    for name in asked_metrics(promotion):
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
    """Return a sentence for each metric that the policy names and no candidate has, by configuration key."""
    names = {
        "promotion.metric": [promotion.metric],
        "promotion.prefer": promotion.prefer,
        "promotion.limits": list(promotion.limits),
    }
    available = sorted({key for candidate in candidates for key in candidate.metrics})
    faults = [
        f"{key}: {unknown('metric', name, available)}"
        for key, values in names.items()
        for name in values
        if metric_key(name) not in available
    ]
    if not metric_key(promotion.metric).endswith("/mean") and not faults:
        means = [key.removesuffix("/mean") for key in available if key.endswith("/mean")]
        faults.append(
            "promotion.metric must be a metric that scores every row, "
            f"got '{promotion.metric}'. Available: {', '.join(means)}."
        )
    return faults


def _limit_faults(candidate: Candidate, limits: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield every limit that a candidate breaks. `faults_of` reports missing values and values that are no numbers."""
    for name, limit in limits.items():
        value = candidate.metrics.get(metric_key(name), math.nan)
        if not math.isfinite(value):
            continue
        if "min" in limit and value < limit["min"]:
            yield f"{name} {value:g} is below {limit['min']:g}"
        if "max" in limit and value > limit["max"]:
            yield f"{name} {value:g} is above {limit['max']:g}"


def _by_cost(promotion: Promotion) -> Callable[[Candidate], list[float]]:
    return lambda candidate: [*costs(candidate, promotion), -score(candidate, promotion)]


def _by_score(promotion: Promotion) -> Callable[[Candidate], list[float]]:
    return lambda candidate: [-score(candidate, promotion), *costs(candidate, promotion)]
