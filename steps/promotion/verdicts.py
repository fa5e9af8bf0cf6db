"""Compare candidates by the policy's metric, in four words. Pure functions.

superior: shown to be better. non-inferior: shown not to be worse by the margin or more. inferior: shown to be worse,
and not shown to be within the margin. undecided: there are too few rows to show any of these.

"Shown" means that the bound of the paired difference, at half of `alpha` and corrected for all comparisons of one
register, lies on that side. The halving is usual for one-sided claims (ICH E9, section 5.5), and it is why the printed
two-sided intervals agree with the words.
"""

from dataclasses import dataclass

from steps.config.schema import Promotion
from steps.evaluation.statistics import Difference, Estimate, corrected, corrections, paired, rows_needed
from steps.promotion.candidate import Candidate, merit
from steps.store.names import row_metric

SUPERIOR, NON_INFERIOR, UNDECIDED, INFERIOR = "superior", "non-inferior", "undecided", "inferior"
# Closer to the margin than this part of it, a number of rows means nothing.
NEAR = 0.1


@dataclass(frozen=True)
class Verdict:
    """How a candidate compares with its rivals.

    Attributes:
        word: superior, non-inferior, undecided or inferior.
        rival: The name of the rival that `difference` is about: of several, the one with the best score.
        difference: Candidate minus rival, in the metric's unit, with its two-sided interval.
        at_worst: The bound that decides about the margin: how the candidate differs from its nearest rival, at worst.
        rows_needed: If undecided, about how many rows would show that the candidate is within the margin; None if it
            looks as bad as the margin, so that no number of rows would.
    """

    word: str
    rival: str
    difference: Difference
    at_worst: float
    rows_needed: int | None = None

    @property
    def acceptable(self) -> bool:
        """Return True if the candidate is shown not to be worse by the margin or more."""
        return self.word in (SUPERIOR, NON_INFERIOR)


def advantage(ours: Candidate, theirs: Candidate, promotion: Promotion) -> Estimate:
    """Return by how much ours is better than theirs in the policy's metric, paired by row."""
    name = row_metric(promotion.metric)
    if promotion.less_is_better:
        return paired(theirs.rows[name], ours.rows[name])
    return paired(ours.rows[name], theirs.rows[name])


def score_difference(ours: Candidate, theirs: Candidate, promotion: Promotion) -> Difference:
    """Return ours minus theirs in the policy's metric, paired by row."""
    estimate = advantage(ours, theirs, promotion)
    low, high = estimate.interval(promotion.alpha)
    if promotion.less_is_better:
        return Difference(-estimate.mean, -high, -low)
    return Difference(estimate.mean, low, high)


def against_each_other(candidates: list[Candidate], promotion: Promotion) -> dict[str, Verdict]:
    """Return, by model id, how each candidate compares with all others; empty for a single candidate.

    A candidate is non-inferior if it is so against every other one. So the claim does not depend on which of them is
    truly the best, or had luck. The claim about the truly best is true, so the correction counts one less.
    """
    rivals = {one.model_id: [other for other in candidates if other is not one] for one in candidates}
    return _verdicts(candidates, rivals, promotion, 1) if len(candidates) > 1 else {}


def against_one(candidates: list[Candidate], rival: Candidate, promotion: Promotion) -> dict[str, Verdict]:
    """Return, by model id, how each candidate compares with one rival, such as the champion."""
    return _verdicts(candidates, {one.model_id: [rival] for one in candidates}, promotion, 0)


def needed_rows(verdict: Verdict, promotion: Promotion) -> str:
    """Return how many rows would decide, for people; "" if the verdict is not undecided."""
    if verdict.word != UNDECIDED:
        return ""
    if verdict.rows_needed is None:
        return f"more rows would not show a difference below the margin of {promotion.margin:g}"
    return f"to show a difference below the margin of {promotion.margin:g} needs about {verdict.rows_needed} rows"


def _verdicts(
    candidates: list[Candidate], rivals: dict[str, list[Candidate]], promotion: Promotion, surely_true: int
) -> dict[str, Verdict]:
    """Return the verdict on every candidate.

    Args:
        candidates: The candidates to compare.
        rivals: By model id, the candidates to compare it with.
        promotion: The policy.
        surely_true: How many of the claims to be non-inferior must be true.
    """
    estimates = [[advantage(one, rival, promotion) for rival in rivals[one.model_id]] for one in candidates]
    level = promotion.alpha / 2
    # A claim about all rivals is as doubtful as the one about the nearest rival.
    about_margin = [max(estimate.doubt(-promotion.margin) for estimate in against) for against in estimates]
    about_better = [max(estimate.doubt(0.0) for estimate in against) for against in estimates]
    factors = corrections(about_margin, level, surely_true)
    within = corrected(about_margin, factors)
    better = corrected(about_better, corrections(about_better, level))
    verdicts = {}
    for index, (one, against) in enumerate(zip(candidates, estimates, strict=True)):
        worse = any(1 - estimate.doubt(0.0) <= level / len(against) / factors[index] for estimate in against)
        word = _word(better[index] <= level, within[index] <= level, worse)
        at_worst = min(estimate.bound(level / factors[index]) for estimate in against)
        rival = max(rivals[one.model_id], key=lambda rival: merit(rival, promotion))
        verdicts[one.model_id] = Verdict(
            word,
            rival.name,
            score_difference(one, rival, promotion),
            -at_worst if promotion.less_is_better else at_worst,
            _rows_needed(against, promotion, factors[index]) if word == UNDECIDED else None,
        )
    return verdicts


def _word(better: bool, within: bool, worse: bool) -> str:
    if better:
        return SUPERIOR
    if within:
        return NON_INFERIOR
    return INFERIOR if worse else UNDECIDED


def _rows_needed(estimates: list[Estimate], promotion: Promotion, claims: int) -> int | None:
    """Return about how many rows would show that all of these are within the margin, if they are as they look."""
    nearest = max(estimates, key=lambda estimate: estimate.doubt(-promotion.margin))
    distance = promotion.margin + min(0.0, nearest.mean)
    if distance <= NEAR * promotion.margin:
        return None
    return max(nearest.rows + 1, rows_needed(distance, promotion.alpha, nearest.variance, claims))
