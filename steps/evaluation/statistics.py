"""Confidence intervals of mean scores, and paired differences of two variants: bootstrap over rows. Pure functions.

The bootstrap needs no assumption about the distribution of scores, which are mostly 0 or 1 (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Two variants are compared on the differences per row: some rows are
hard for all variants, and that variance cancels out. The percentile method is too narrow for a few dozen rows or less.

The seed is fixed: equal scores always give equal intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
SEED = 0
# Largest number of values in one batch of resamples, so that 100,000 rows fit in memory.
BATCH_NUMBERS = 10_000_000


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


def interval(scores: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """Return the bootstrap interval of the mean at confidence 1 - alpha (SciPy's percentile method).

    Raises:
        ValueError: there are no scores.
    """
    import numpy as np
    from scipy.stats import bootstrap

    values = np.asarray(scores, dtype=float)
    if len(values) == 0:
        raise ValueError("an interval needs at least one score, got none")
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    confidence = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(values)),
        confidence_level=1 - alpha,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(confidence.low), float(confidence.high)


def difference(ours: Sequence[float], theirs: Sequence[float], alpha: float = 0.05) -> Difference:
    """Compare paired scores: `ours[r]` and `theirs[r]` belong to the same row.

    A row that either side skipped (NaN) does not count.

    Raises:
        ValueError: the numbers of scores differ, or no row is left.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired scores must be of the same rows, got {len(ours)} and {len(theirs)}")
    differences = [one - other for one, other in zip(ours, theirs, strict=True) if not math.isnan(one - other)]
    low, high = interval(differences, alpha)
    return Difference(sum(differences) / len(differences), low, high)
