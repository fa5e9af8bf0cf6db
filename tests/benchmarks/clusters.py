"""Measure what rows that depend on each other do to the promises: rephrasings of one question, turns of one chat.

A cluster is a question in so many phrasings. With probability `same`, a variant answers a phrasing as it answers the
question itself, otherwise on its own. The champion is the best, and one cheaper variant is worse by the margin: "wrong"
is how often it becomes champion. "covered" is how often the printed interval of 95 % holds the true difference. The
last two columns are the same if one row of each cluster is kept.
"""

import itertools

import numpy as np
from scipy.special import stdtr, stdtrit

from tests.benchmarks.promotion import BATCH_SCORES, BEST, LEVEL, MARGIN, estimates

ROWS, SIZES, SAME, LINK = (120, 300, 1000), (1, 2, 5, 10), (0.3, 0.6, 0.9), 0.7


def main(races: int) -> None:
    """Print a line for each setting."""
    heads = ["rows", "rows of a cluster", "same", "wrong", "covered", "one row of each: wrong", "covered"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for rows, size, same in itertools.product(ROWS, SIZES, SAME):
        if size > 1 or same == SAME[0]:
            cells = [rows, size, same, *(f"{share:.4f}" for share in measure(rows, size, same, races))]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure(rows: int, size: int, same: float, races: int) -> tuple[float, ...]:
    """Return how often a promotion is wrong and an interval covers: over all rows, over one row of each cluster."""
    draw = np.random.default_rng([rows, size, round(10 * same)])
    totals, done = np.zeros(4), 0
    while done < races:
        scores = clustered(min(races - done, BATCH_SCORES // (2 * rows)), rows, size, same, draw)
        totals += [*_counts(scores), *_counts(scores[:, :, ::size])]
        done += len(scores)
    return tuple((totals / done).tolist())


def clustered(races: int, rows: int, size: int, same: float, draw: np.random.Generator) -> np.ndarray:
    """Return binary scores by race, variant and row. The rows of a cluster stand together."""

    def hardness(count: int) -> np.ndarray:
        shape = (races, 2, count)
        shared, own = draw.random((races, 1, count)), draw.random(shape)
        return np.where(draw.random(shape) < LINK, shared, own)

    of_questions = np.repeat(hardness(rows // size), size, axis=2)
    alike = draw.random((races, 1, rows)) < same
    means = np.array([BEST, BEST - MARGIN])[None, :, None]
    return (np.where(alike, of_questions, hardness(rows)) < means).astype(np.float32)


def _counts(scores: np.ndarray) -> tuple[int, int]:
    """Return how many races promote the worse variant, and how many intervals hold the true difference."""
    center, error, freedom = (values[:, 1, 0] for values in estimates(scores, graded=False))
    shown = stdtr(freedom, (-MARGIN - center) / error) <= LEVEL
    covered = np.abs(-MARGIN - center) <= -stdtrit(freedom, LEVEL) * error
    return int(shown.sum()), int(covered.sum())
