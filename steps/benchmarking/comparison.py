"""Compare two ways to do the same work on one machine, whose speed may change meanwhile.

The sides take turns, and each round gives one ratio. A control measurement is taken before, between and after them. A
round in which it changes by more than DRIFT does not count and is repeated. If too few rounds count, there is no ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

DRIFT = 0.10
# How many rounds may be repeated, for each that is wanted.
TRIES = 3

Measurement = Callable[[], float]


@dataclass(frozen=True)
class Side:
    """One way to do the work: its name, and a measurement in the unit of the comparison."""

    name: str
    measure: Measurement


@dataclass(frozen=True)
class Comparison:
    """Two sides of which the first is ours.

    Attributes:
        unit: That of both measurements: tokens/s, s or bytes.
        warm_up: Whether a first round does not count. Not needed for what starts anew each time.
        rounds: How many rounds are enough, if fewer than usual.
    """

    ours: Side
    theirs: Side
    unit: str = "tokens/s"
    warm_up: bool = True
    rounds: int | None = None


@dataclass(frozen=True)
class Round:
    """What one round gave. `drift`: by which share the control measurement changed."""

    ours: float
    theirs: float
    drift: float

    @property
    def counts(self) -> bool:
        """Return whether the machine was quiet."""
        return self.drift <= DRIFT


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of some numbers."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Result:
    """What a comparison gave, with the rounds that do not count. It does not hold what was measured: models are large.

    Attributes:
        names: Those of both sides. The first is ours.
        unit: That of the comparison.
        wanted: How many rounds have to count for a ratio.
    """

    section: str
    names: tuple[str, str]
    unit: str
    rounds: tuple[Round, ...]
    wanted: int

    @property
    def name(self) -> str:
        """Return both sides in a few words."""
        return " against ".join(self.names)

    @property
    def is_quiet(self) -> bool:
        """Return whether enough rounds count."""
        return len(self._counted) >= self.wanted

    @property
    def ours(self) -> Quartiles:
        """Return our measurements."""
        return quartiles([each.ours for each in self._shown])

    @property
    def theirs(self) -> Quartiles:
        """Return those of the other side."""
        return quartiles([each.theirs for each in self._shown])

    @property
    def ratio(self) -> Quartiles | None:
        """Return how many times ours is as fast, or as small; None if the machine was too noisy."""
        if not self.is_quiet:
            return None
        ratios = [each.ours / each.theirs for each in self._counted]
        # Of seconds and bytes, less is better.
        return quartiles(ratios if self.unit == "tokens/s" else [1 / ratio for ratio in ratios])

    @property
    def _counted(self) -> list[Round]:
        return [each for each in self.rounds if each.counts]

    @property
    def _shown(self) -> list[Round]:
        return self._counted if self.is_quiet else list(self.rounds)


def quartiles(values: list[float]) -> Quartiles:
    """Return the quartiles of at least one number."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Quartiles(float(low), float(middle), float(high))


def compare(section: str, comparison: Comparison, rounds: int, control: Measurement) -> Result:
    """Measure both sides in turn until `rounds` rounds count, or TRIES times as many are over."""
    wanted = min(comparison.rounds or rounds, rounds)
    if comparison.warm_up:
        comparison.ours.measure()
        comparison.theirs.measure()
    done: list[Round] = []
    if comparison.unit == "bytes":
        control = _steady
    while sum(each.counts for each in done) < wanted and len(done) < TRIES * wanted:
        done.append(_round(comparison, control, ours_first=len(done) % 2 == 0))
    return Result(section, (comparison.ours.name, comparison.theirs.name), comparison.unit, tuple(done), wanted)


def _steady() -> float:
    """Stand in for the control measurement: bytes do not depend on the speed of the machine."""
    return 1.0


def _round(comparison: Comparison, control: Measurement, ours_first: bool) -> Round:
    sides = (comparison.ours, comparison.theirs) if ours_first else (comparison.theirs, comparison.ours)
    controls, values = [control()], []
    for side in sides:
        values.append(side.measure())
        controls.append(control())
    ours, theirs = values if ours_first else reversed(values)
    return Round(ours, theirs, (max(controls) - min(controls)) / median(controls))
