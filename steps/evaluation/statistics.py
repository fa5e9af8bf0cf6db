"""Confidence intervals of mean scores, paired differences of two variants, and what a number of rows can show.

Pure functions. Two variants are compared on the differences per row: some rows are hard for all variants, and that
variance cancels out.

An interval is Student's, over the rows and two made-up ones: one won and one lost by the whole scale. For scores of 0
and 1 this is the adjusted Wald interval of Bonett and Price (Journal of Educational and Behavioral Statistics 37,
2012; Agresti and Caffo 2000 for one sample), so it has a width even if all rows agree. Student's degrees of freedom are
the rows that differ from the most common value, plus FREEDOM: a mean that rests on two rows of 500 is not normal.

The method was chosen by measurement. Over all outcomes of binary scores with 5 to 500 rows its one-sided error at
alpha / 2 stays below alpha, also for alpha / 15, and its coverage at 0.95 is 0.94 or more from 10 rows on. Tango's
score interval covers 0.93 at 118 rows. Reproduce: `python -m tests.benchmarks.promotion`. Rows must be independent: ten
rephrasings of a question count as ten rows here.

The mean of scores that are all 0 or 1 has the exact interval of Clopper and Pearson instead.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

FREEDOM = 7
# The power that "can show" and "rows needed" assume: the chance to see a difference that is there.
POWER = 0.8
# Before two variants have answered, they are assumed to disagree on one row in ten.
DISAGREEMENT = 0.1


@dataclass(frozen=True)
class Difference:
    """Mean of ours - theirs over the same rows, with its confidence interval from `low` to `high`."""

    mean: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Return True if ours is significantly higher."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Return True if ours is significantly lower."""
        return self.high < 0


@dataclass(frozen=True)
class Estimate:
    """What some rows say about a true mean.

    Attributes:
        mean: The mean of the rows.
        center: The mean with the two made-up rows.
        error: The standard error of `center`.
        freedom: Student's degrees of freedom.
        least: The lowest conceivable mean.
        most: The highest conceivable mean.
        rows: How many rows there are.
    """

    mean: float
    center: float
    error: float
    freedom: float
    least: float
    most: float
    rows: int

    @property
    def variance(self) -> float:
        """Return the variance of a row, with the two made-up ones."""
        return self.error**2 * (self.rows + 2)

    def bound(self, level: float) -> float:
        """Return the one-sided lower bound, which lies above the true mean with probability `level`."""
        return max(self.least, self.center - self._reach(level))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return the two-sided interval at confidence 1 - alpha."""
        return self.bound(alpha / 2), min(self.most, self.center + self._reach(alpha / 2))

    def doubt(self, claim: float) -> float:
        """Return the level at which the lower bound would be `claim`: small if the mean is surely higher."""
        from scipy.special import stdtr

        return float(stdtr(self.freedom, (claim - self.center) / self.error))

    def _reach(self, level: float) -> float:
        from scipy.special import stdtrit

        return -float(stdtrit(self.freedom, level)) * self.error


def interval(scores: Sequence[float], alpha: float = 0.05, scale: float = 1.0) -> tuple[float, float]:
    """Return the confidence interval of the mean at confidence 1 - alpha.

    Args:
        scores: Those of the rows.
        alpha: The error that is accepted.
        scale: The highest score that there can be, if none is higher; 0 if that is unknown.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("an interval needs at least one score, got none")
    if scale == 1 and set(scores) <= {0.0, 1.0}:
        from scipy.stats import binomtest

        exact = binomtest(int(sum(scores)), len(scores)).proportion_ci(1 - alpha, "exact")
        return float(exact.low), float(exact.high)
    return _estimate(scores, min(0.0, *scores), max(scale, *scores)).interval(alpha)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return what the rows say about the true mean of ours - theirs. `ours[r]` and `theirs[r]` are of the same row.

    A row that either side skipped (NaN) does not count.

    Raises:
        ValueError: the numbers of scores differ, or no row is left.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired scores must be of the same rows, got {len(ours)} and {len(theirs)}")
    differences = [one - other for one, other in zip(ours, theirs, strict=True) if not math.isnan(one - other)]
    if not differences:
        raise ValueError("a difference needs at least one row that both answered, got none")
    scale = max(1.0, *map(abs, differences))
    return _estimate(differences, -scale, scale)


def difference(ours: Sequence[float], theirs: Sequence[float], alpha: float = 0.05) -> Difference:
    """Compare paired scores at confidence 1 - alpha; see `paired`."""
    estimate = paired(ours, theirs)
    return Difference(estimate.mean, *estimate.interval(alpha))


def corrections(doubts: Sequence[float], level: float, surely_true: int = 0) -> list[int]:
    """Return the factor that corrects each doubt for their number: the step-down method of Holm (1979).

    Claims that are shown to be false are not counted: they are no chance for a false success (Hansen, A Test for
    Superior Predictive Ability, Journal of Business and Economic Statistics 23, 2005).

    Args:
        doubts: One for each claim.
        level: The level of one claim.
        surely_true: How many of the claims must be true, whichever they are (Shaffer 1986).
    """
    open_claims = sum(doubt < 1 - level for doubt in doubts)
    at_most = max(1, open_claims - surely_true)
    factors = [1] * len(doubts)
    for place, index in enumerate(_ascending(doubts)):
        factors[index] = max(1, min(at_most, open_claims - place))
    return factors


def corrected(doubts: Sequence[float], factors: Sequence[int]) -> list[float]:
    """Return doubts with their corrections. No claim is less doubtful than one that was less doubtful before."""
    results, largest = [0.0] * len(doubts), 0.0
    for index in _ascending(doubts):
        largest = max(largest, min(1.0, doubts[index] * factors[index]))
        results[index] = largest
    return results


def rows_needed(margin: float, alpha: float, variance: float = DISAGREEMENT, claims: int = 1) -> int:
    """Return how many rows show with POWER that two equally good variants differ by less than a margin."""
    return math.ceil((_quantiles(alpha, claims) / margin) ** 2 * variance)


def least_difference(rows: int, alpha: float, variance: float = DISAGREEMENT, claims: int = 1) -> float:
    """Return the smallest true difference that so many rows show with POWER."""
    return _quantiles(alpha, claims) * math.sqrt(variance / rows)


def power_sentence(rows: int, margin: float, alpha: float, variants: int = 2) -> str:
    """Return what a prompt set can show, before money is spent on it."""
    claims = max(1, variants - 1)
    least = min(1.0, least_difference(rows, alpha, claims=claims))
    among = f" and {variants} variants" if variants > 2 else ""
    needed = ""
    if margin:
        count = _rounded(rows_needed(margin, alpha, claims=claims))
        needed = f"; for a margin of {margin:g} you need about {count} rows"
    return (
        f"{rows} row{'s' if rows != 1 else ''}{among}: differences under about {least:.2f} cannot be told apart"
        f"{needed} (if two variants disagree on one row in ten)."
    )


def _quantiles(alpha: float, claims: int) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2 / max(1, claims)) + ndtri(POWER))


def _ascending(doubts: Sequence[float]) -> list[int]:
    """Return the places of doubts, from the smallest doubt on."""
    return sorted(range(len(doubts)), key=doubts.__getitem__)


def _rounded(number: int) -> int:
    """Round up to two digits."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return math.ceil(number / step) * step


def _estimate(values: Sequence[float], least: float, most: float) -> Estimate:
    """Return the estimate of a mean that lies between `least` and `most`."""
    rows = len(values)
    center = (math.fsum(values) + least + most) / (rows + 2)
    squares = math.fsum((value - center) ** 2 for value in [*values, least, most])
    differing = rows - max(Counter(values).values())
    error = math.sqrt(squares / (rows + 1) / (rows + 2))
    return Estimate(math.fsum(values) / rows, center, error, differing + FREEDOM, least, most, rows)
