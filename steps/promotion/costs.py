"""What a candidate costs by the policy, and which of two is cheaper. Pure functions.

Costs are compared in the order of `prefer`. Within a tolerance, which is the noise of its measurement, a cost does not
decide, and the next one counts.
"""

from dataclasses import replace

from steps.config.schema import Promotion
from steps.promotion.candidate import Candidate, merit
from steps.store.names import CONTRACT_PASSED, CONTRACT_TOTAL, is_known, is_timed, metric_key, more_is_better


def tolerance(name: str, promotion: Promotion) -> float:
    """Return the part by which two values of a cost may differ and still count as equal."""
    if is_timed(name):
        return promotion.timed_tolerance
    return promotion.size_tolerance if metric_key(name).startswith("size/") else 0.0


def deciding_cost(ours: Candidate, theirs: Candidate, promotion: Promotion) -> tuple[str, bool] | None:
    """Return the first cost that differs by more than its tolerance, and whether ours is the cheaper; None if none."""
    for name in promotion.prefer:
        our, their = _values([ours, theirs], name)
        if not _close(our, their, tolerance(name, promotion)):
            return name, our < their
    return None


def is_cheaper(ours: Candidate, theirs: Candidate, promotion: Promotion) -> bool:
    """Return True if ours costs less by more than the measurement's noise."""
    decided = deciding_cost(ours, theirs, promotion)
    return decided is not None and decided[1]


def cheapest(candidates: list[Candidate], promotion: Promotion) -> list[Candidate]:
    """Return the candidates that are left when each cost in turn keeps those within its tolerance of the least."""
    for name in promotion.prefer:
        values = _values(candidates, name)
        least, noise = min(values), tolerance(name, promotion)
        candidates = [one for one, value in zip(candidates, values, strict=True) if _close(value, least, noise)]
    return candidates


def tie_break(candidate: Candidate, promotion: Promotion) -> list[float]:
    """Return what orders candidates that the costs do not tell apart: score, then contract. Noise does not decide."""
    return [-merit(candidate, promotion), float(broken_checks(candidate) or 0)]


def broken_checks(candidate: Candidate) -> int | None:
    """Return how many checks of its own contract a candidate fails; None if they were not made."""
    total = candidate.metrics.get(CONTRACT_TOTAL.key)
    return None if not total else round(total - candidate.metrics[CONTRACT_PASSED.key])


def with_measured_costs(promotion: Promotion, measured: set[str]) -> Promotion:
    """Return the policy without the timed costs that no variant has, if at least one cost is left.

    Args:
        promotion: The policy.
        measured: The keys of all metrics of all variants.
    """
    prefer = [name for name in promotion.prefer if metric_key(name) in measured or not is_known(name)]
    return replace(promotion, prefer=prefer) if prefer else promotion


def _values(candidates: list[Candidate], name: str) -> list[float]:
    """Return a cost of each candidate, with its sign set so that less is better."""
    key = metric_key(name)
    return [-one.metrics[key] if more_is_better(key) else one.metrics[key] for one in candidates]


def _close(one: float, other: float, noise: float) -> bool:
    """Return True if two values differ by no more than a part of the larger one."""
    return abs(one - other) <= noise * max(abs(one), abs(other))
