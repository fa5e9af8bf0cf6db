"""How sure a mean of row scores is, and whether two variants differ: bootstrap over rows. Pure functions.

Every interval is drawn with the same seed, so that the same scores always give the same interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
SEED = 0
# Numbers that one batch of resamples may hold, so that 100,000 rows stay within memory.
BATCH_NUMBERS = 10_000_000


@dataclass(frozen=True)
class Difference:
    """The mean of ours - theirs over the same rows, with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        return self.low > 0

    @property
    def worse(self) -> bool:
        return self.high < 0


def interval(scores: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """The bootstrap interval of the mean, at confidence 1 - alpha (percentile method of SciPy's bootstrap)."""
    import numpy as np
    from scipy.stats import bootstrap

    values = np.asarray(scores, dtype=float)
    if len(values) == 0:
        raise ValueError("an interval needs at least one score, got none")
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(values)),
        confidence_level=1 - alpha,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def difference(ours: Sequence[float], theirs: Sequence[float], alpha: float = 0.05) -> Difference:
    """Paired: `ours[r]` and `theirs[r]` are scores of the same row; raises ValueError where they are not as many.

    A row that either of both skipped (NaN) does not count.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"paired scores must be of the same rows, got {len(ours)} and {len(theirs)}")
    differences = [one - other for one, other in zip(ours, theirs, strict=True) if not math.isnan(one - other)]
    low, high = interval(differences, alpha)
    return Difference(sum(differences) / len(differences), low, high)
