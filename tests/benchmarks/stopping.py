"""Measure early stopping: how often it stops a variant that could win, and how much it saves.

A variant is asked last, batch by batch, and all others are completely scored. "best stopped" is how often it is stopped
although no variant is truly better, "margin stopped" although it is worse by just the margin, both of which must be at
most alpha. "worse stopped" is how often a variant is stopped that is truly worse than the best by the difference, and
"rows saved" which part of its rows is not asked.
"""

import itertools

import numpy as np

from steps.evaluation.betting import money
from tests.benchmarks.promotion import ALPHA, BATCH_SCORES, MARGIN, Setting, drawn

ROWS, VARIANTS, LINKS, DIFFERENCES, BATCH = (30, 118, 300, 1000), (2, 4, 16), (0.5, 0.9), (0.1, 0.2, 0.4), 16


def main(races: int) -> None:
    """Print a line for each setting, and the worst of the columns about errors."""
    heads = ["rows", "variants", "scores", "link", "best stopped", "margin stopped"]
    heads += [f"{difference:g} worse: stopped, rows saved" for difference in DIFFERENCES]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    worst = 0.0
    for rows, variants, graded, link in itertools.product(ROWS, VARIANTS, (False, True), LINKS):
        errors = [stopped(Setting(rows, variants, worse, graded, link), races)[0] for worse in (0.0, MARGIN)]
        found = [stopped(Setting(rows, variants, worse, graded, link), races // 10) for worse in DIFFERENCES]
        worst = max(worst, *errors)
        cells = [rows, variants, "graded" if graded else "binary", link, *(f"{error:.4f}" for error in errors)]
        cells += [f"{share:.2f}, {saved:.2f}" for share, saved in found]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\nworst: stopped {worst:.4f}; alpha is {ALPHA}")


def stopped(setting: Setting, races: int) -> tuple[float, float]:
    """Return how often the last variant is stopped, and which part of its rows is not asked then.

    The best is variant 0 of `drawn`, and the last one is worse than it by the difference of the setting. The others
    between them are as bad as the last, or, with a difference of 0, as good.
    """
    draw = np.random.default_rng([setting.rows, setting.variants, round(1000 * setting.difference), setting.graded])
    size = max(1, min(races, BATCH_SCORES // (setting.rows * setting.variants)))
    count, saved, done = 0, 0, 0
    while done < races:
        scores = drawn(setting, min(size, races - done), draw)
        ends = _ends(scores[:, -1:] - scores[:, :-1], setting.variants - 1)
        count, saved, done = count + (ends < setting.rows).sum(), saved + (setting.rows - ends).sum(), done + len(ends)
    return float(count / done), float(saved / done / setting.rows)


def _ends(advantages: np.ndarray, rivals: int) -> np.ndarray:
    """Return after how many rows each race is stopped, all rows if it is not."""
    rows = advantages.shape[-1]
    ends = np.full(len(advantages), rows)
    wealth = money(advantages, MARGIN, every=True).sum(1)
    # Looked at after each batch; the last look comes too late.
    for end in range(((rows - 1) // BATCH) * BATCH, 0, -BATCH):
        ends[wealth[:, end - 1] >= rivals / ALPHA] = end
    return ends
