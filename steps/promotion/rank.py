"""Rank variants by a promotion policy: limits, contract, metric with margin, cost. Pure functions.

The best score wins, unless a cheaper candidate is shown to be worse by less than the margin (`verdicts.py`,
`costs.py`). The decision is the same on every run: nothing is drawn, and a draw goes to the older candidate.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from steps.config.schema import Promotion
from steps.errors import unknown
from steps.promotion.candidate import Candidate, merit
from steps.promotion.costs import broken_checks, cheapest, is_cheaper, tie_break
from steps.promotion.verdicts import Verdict, against_each_other
from steps.store.names import MEASURED, metric_key, row_metric


@dataclass(frozen=True)
class Ranking:
    """The order of the candidates.

    Attributes:
        ranked: The candidates that the policy allows, the best first.
        refused: By model id, why each of the others is refused.
        highest: The candidate with the best score; None if none is allowed.
        verdicts: By model id, how each ranked candidate compares with all other ranked ones.
    """

    ranked: list[Candidate]
    refused: dict[str, list[str]]
    highest: Candidate | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)


def rank(candidates: list[Candidate], promotion: Promotion, champion_id: str | None = None) -> Ranking:
    """Rank candidates: the best score and those that may take its place by cost, then the others by score.

    Args:
        candidates: Oldest first.
        promotion: The policy.
        champion_id: The model of the champion, which wins a draw of costs.
    """
    faults = {candidate.model_id: faults_of(candidate, promotion) for candidate in candidates}
    allowed = [candidate for candidate in candidates if not faults[candidate.model_id]]
    faults |= {model_id: [fault] for model_id, fault in contract_faults(allowed, promotion).items()}
    refused = {model_id: sentences for model_id, sentences in faults.items() if sentences}
    allowed = [candidate for candidate in allowed if candidate.model_id not in refused]
    if not allowed:
        return Ranking([], refused)
    verdicts, highest = against_each_other(allowed, promotion), _highest(allowed, promotion)
    contenders = [
        candidate
        for candidate in allowed
        if candidate is highest
        or (verdicts[candidate.model_id].acceptable and is_cheaper(candidate, highest, promotion))
    ]
    others = [candidate for candidate in allowed if candidate not in contenders]
    ranked = _by_cost(contenders, promotion, champion_id) + sorted(others, key=lambda one: tie_break(one, promotion))
    return Ranking(ranked, refused, highest, verdicts)


def contract_faults(candidates: list[Candidate], promotion: Promotion) -> dict[str, str]:
    """Return, by model id, why a candidate is set aside: another one fails fewer checks of its own contract.

    A candidate whose contract was not checked is not set aside.
    """
    broken = {one.model_id: count for one in candidates if (count := broken_checks(one)) is not None}
    if not promotion.contract_first or not broken:
        return {}
    best = next(one for one in candidates if broken.get(one.model_id) == min(broken.values()))
    return {
        model_id: f"it fails {count} checks of its own contract, and {best.name} fails {broken[best.model_id]} "
        "(promotion.contract_first=false lets it compete)"
        for model_id, count in broken.items()
        if count > broken[best.model_id]
    }


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


def _highest(candidates: list[Candidate], promotion: Promotion) -> Candidate:
    """Return the candidate with the best score. Among equal scores the better made wins, then the cheapest."""
    top = max(merit(candidate, promotion) for candidate in candidates)
    equal = [candidate for candidate in candidates if merit(candidate, promotion) == top]
    fewest = min(broken_checks(candidate) or 0 for candidate in equal)
    made = [candidate for candidate in equal if (broken_checks(candidate) or 0) == fewest]
    return min(cheapest(made, promotion), key=lambda one: tie_break(one, promotion))


def _by_cost(candidates: list[Candidate], promotion: Promotion, champion_id: str | None) -> list[Candidate]:
    """Return candidates by cost. If the costs do not decide, the champion wins, then the best score."""
    ranked: list[Candidate] = []
    while left := [candidate for candidate in candidates if candidate not in ranked]:
        equal = cheapest(left, promotion)
        ranked.append(min(equal, key=lambda one: (one.model_id != champion_id, tie_break(one, promotion))))
    return ranked
