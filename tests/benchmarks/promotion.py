"""Measure how often a promotion is wrong, by simulated races whose truth is known.

    python -m tests.benchmarks.promotion              # races: about ten minutes on two cores
    python -m tests.benchmarks.promotion exact        # all outcomes of binary scores, without drawing
    python -m tests.benchmarks.promotion drift        # ten promotions in a row
    python -m tests.benchmarks.promotion stopping     # early stopping (stopping.py)
    python -m tests.benchmarks.promotion clusters     # rows that depend on each other (clusters.py)
    python -m tests.benchmarks.promotion seeds        # int4 on two checkpoints, really built and asked (seeds.py)
    python -m tests.benchmarks.promotion --races 500  # a quick look

A race draws the scores of all variants on the same rows and decides. Two races are run on each draw:

- kept: the champion is the best, and all others are cheaper and worse by the difference.
- beaten: the champion and the others are worse than one new variant by the difference. The others are cheaper than the
  champion, the new variant is dearer.

"wrong" counts promotions of a variant that is truly worse than the best by the margin or more. "cheaper" is how often
the kept champion is replaced by a cheaper variant, "better" how often the beaten one is replaced by the best. "covered"
is how often the printed interval of a difference holds the true one, "winner" how often the printed interval of the
highest score holds the true one, although it was chosen.

Scores are binary, or graded as token F1 is: many zeros, the rest spread. With a link of 0.9, nine rows of ten are as
hard for one variant as for the next. The races are decided by array operations; some races of each setting are decided
by the real functions too, and must end alike.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import beta, multinomial

from steps.config.schema import Promotion
from steps.evaluation.statistics import FREEDOM
from steps.promotion.candidate import Candidate
from steps.promotion.gate import decide
from steps.promotion.rank import rank
from steps.promotion.reference import NO_REFERENCE, Reference

MARGIN, ALPHA, LEVEL = 0.05, 0.05, 0.025
ROWS, VARIANTS, LINKS = (10, 30, 118, 300, 1000), (2, 4, 16), (0.5, 0.9)
DIFFERENCES = (0.0, MARGIN / 2, MARGIN, 2 * MARGIN)
POLICY = Promotion(name="benchmark", metric="score", margin=MARGIN, alpha=ALPHA, prefer=["bytes"])
BEST = 0.6
# Largest number of scores in memory at a time.
BATCH_SCORES = 8_000_000
CHECKED = 3


@dataclass(frozen=True)
class Setting:
    """What a race is drawn from."""

    rows: int
    variants: int
    difference: float
    graded: bool
    link: float


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what", nargs="?", default="races", choices=("races", "exact", "drift", "stopping", "clusters", "seeds")
    )
    parser.add_argument("--races", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    from tests.benchmarks import clusters, seeds, stopping  # they import this module

    if arguments.what == "exact":
        exact()
    elif arguments.what == "drift":
        drift(min(arguments.races, 300))
    elif arguments.what == "races":
        races(arguments.races)
    elif arguments.what == "seeds":
        seeds.main(arguments.seeds)
    else:
        {"stopping": stopping, "clusters": clusters}[arguments.what].main(arguments.races)


def races(count: int) -> None:
    """Print a line for each setting, and the worst of each column."""
    heads = ["rows", "variants", "difference", "scores", "link", "wrong", "cheaper", "better", "covered", "winner"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    results = []
    for rows, variants, difference, graded, link in itertools.product(
        ROWS, VARIANTS, DIFFERENCES, (False, True), LINKS
    ):
        setting = Setting(rows, variants, difference, graded, link)
        results.append(measure(setting, count))
        cells = [rows, variants, difference, "graded" if graded else "binary", link]
        print(
            "| " + " | ".join(map(str, [*cells, *(f"{value:.4f}" for value in results[-1].values())])) + " |",
            flush=True,
        )
    wrong = max(result["wrong"] for result in results)
    covered, winner = (min(result[name] for result in results) for name in ("covered", "winner"))
    print(f"\nworst of {len(results)} settings: wrong {wrong:.4f}, covered {covered:.4f}, winner {winner:.4f}")


def measure(setting: Setting, count: int) -> dict[str, float]:
    """Return the shares of one setting over so many races."""
    draw = np.random.default_rng([setting.rows, setting.variants, round(1000 * setting.difference), setting.graded])
    size = max(1, min(count, BATCH_SCORES // (setting.rows * setting.variants)))
    totals, done = np.zeros(5), 0
    while done < count:
        scores = drawn(setting, min(size, count - done), draw)
        totals += _shares(setting, scores, check=done == 0)
        done += len(scores)
    return dict(zip(("wrong", "cheaper", "better", "covered", "winner"), (totals / count).tolist(), strict=True))


def drawn(setting: Setting, races: int, draw: np.random.Generator) -> np.ndarray:
    """Return scores by race, variant and row. Variant 0 is the best."""
    shape = (races, setting.variants, setting.rows)
    shared = draw.random((races, 1, setting.rows), dtype=np.float32)
    own = draw.random(shape, dtype=np.float32)
    hardness = np.where(draw.random(shape, dtype=np.float32) < setting.link, shared, own)
    means = np.full((1, setting.variants, 1), BEST - setting.difference)
    means[:, 0] = BEST
    if not setting.graded:
        return (hardness < means).astype(np.float32)
    # The mean of a right answer's score is 0.75.
    return (hardness < means / 0.75) * (np.float32(0.5) + draw.random(shape, dtype=np.float32) / 2)


def _shares(setting: Setting, scores: np.ndarray, check: bool) -> np.ndarray:
    """Return the counts of one batch of races."""
    center, error, freedom = estimates(scores, setting.graded)
    doubts = [stdtr(freedom, (claim - center) / error) for claim in (-MARGIN, 0.0)]
    sums = scores.sum(-1, dtype=float)
    kept_costs = np.array([2, *[1] * (setting.variants - 1)])
    beaten_costs = np.array([3, 2, *[1] * (setting.variants - 2)])
    kept = winners(sums, *doubts, kept_costs, champion=0)
    beaten = winners(sums, *doubts, beaten_costs, champion=1)
    if check:
        _check(scores, kept, kept_costs, 0)
        _check(scores, beaten, beaten_costs, 1)
    bad = setting.difference >= MARGIN
    wrong_kept = (kept != 0) & bad
    wrong_beaten = (beaten != 0) & (beaten != 1) & bad
    reach = stdtrit(freedom[:, 0, 1], LEVEL) * error[:, 0, 1]
    covered = np.abs(setting.difference - center[:, 0, 1]) <= -reach
    return np.array(
        [
            max(wrong_kept.sum(), wrong_beaten.sum()),
            (kept != 0).sum(),
            (beaten == 0).sum(),
            covered.sum(),
            _winner_covered(setting, scores, sums).sum(),
        ]
    )


def estimates(scores: np.ndarray, graded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return center, standard error and degrees of freedom of every pair's difference, as `statistics.paired` does."""
    rows = scores.shape[-1]
    products = (scores @ scores.transpose(0, 2, 1)).astype(float)
    own = np.einsum("rii->ri", products)
    sums = scores.sum(-1, dtype=float)
    gaps = sums[:, :, None] - sums[:, None, :]
    squares = own[:, :, None] + own[:, None, :] - 2 * products
    if graded:
        # Spread scores are only equal where both are 0.
        zero = (scores == 0).astype(np.float32)
        commonest = np.maximum(1, (zero @ zero.transpose(0, 2, 1)).astype(float))
    else:
        commonest = np.maximum(np.maximum((squares + gaps) / 2, (squares - gaps) / 2), rows - squares)
    center = gaps / (rows + 2)
    variance = (squares + 2 - (rows + 2) * center**2) / (rows + 1)
    return center, np.sqrt(variance / (rows + 2)), rows - commonest + FREEDOM


def winners(
    sums: np.ndarray, about_margin: np.ndarray, about_better: np.ndarray, costs: np.ndarray, champion: int
) -> np.ndarray:
    """Return the champion after each race, decided as `rank` and `decide` do."""
    variants = sums.shape[1]
    places = np.arange(variants)
    others = places[None, :, None] != places[None, None, :]
    within = _shown(np.where(others, about_margin, 0).max(-1), 1)
    key = sums - 1e-6 * costs - 1e-9 * places
    highest = key.argmax(1)
    contends = (within & (costs < costs[highest][:, None])) | (places == highest[:, None])
    best = np.where(contends, -1e7 * costs + 1e5 * (places == champion) + key, -np.inf).argmax(1)
    challengers = places[places != champion]
    better, safe = (np.zeros_like(within) for _ in range(2))
    better[:, challengers] = _shown(about_better[:, challengers, champion], 0)
    safe[:, challengers] = _shown(about_margin[:, challengers, champion], 0)
    index = np.arange(len(sums))
    safe &= within
    promoted = better[index, best] | (safe[index, best] & (costs[best] < costs[champion]))
    return np.where(promoted, best, champion)


def _shown(doubts: np.ndarray, surely_true: int) -> np.ndarray:
    """Return which claims are shown, with the corrections of `statistics.corrections`."""
    order = doubts.argsort(1, kind="stable")
    ascending = np.take_along_axis(doubts, order, 1)
    claims = (doubts < 1 - LEVEL).sum(1, keepdims=True)
    at_most = np.maximum(1, claims - surely_true)
    factors = np.maximum(1, np.minimum(at_most, claims - np.arange(doubts.shape[1])))
    shown = np.zeros(doubts.shape, dtype=bool)
    np.put_along_axis(shown, order, np.maximum.accumulate(ascending * factors, 1) <= LEVEL, 1)
    return shown


def _winner_covered(setting: Setting, scores: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return whether the interval of the highest score, corrected for the choice, holds the true one."""
    highest, rows, alpha = sums.argmax(1), setting.rows, ALPHA / setting.variants
    true = np.where(highest == 0, BEST, BEST - setting.difference)
    total = sums[np.arange(len(sums)), highest]
    if not setting.graded:
        low = np.nan_to_num(beta.ppf(alpha / 2, np.arange(rows + 1), rows - np.arange(rows + 1) + 1), nan=0)
        right = total.astype(int)
        return (low[right] <= true) & (true <= 1 - low[rows - right])
    chosen = scores[np.arange(len(sums)), highest].astype(float)
    center = (total + 1) / (rows + 2)
    squares = (chosen**2).sum(1) + 1 - (rows + 2) * center**2
    commonest = np.maximum(1, (chosen == 0).sum(1))
    error = np.sqrt(squares / (rows + 1) / (rows + 2))
    return np.abs(true - center) <= -stdtrit(rows - commonest + FREEDOM, alpha / 2) * error


def _check(scores: np.ndarray, ends: np.ndarray, costs: np.ndarray, champion: int) -> None:
    """Decide some races with the real functions, and compare."""
    for race, end in zip(scores[:CHECKED], ends[:CHECKED], strict=True):
        candidates = [
            _candidate(str(place), row, cost) for place, (row, cost) in enumerate(zip(race, costs, strict=True))
        ]
        incumbent = candidates[champion]
        ranking = rank(candidates, POLICY, incumbent.model_id)
        promote = decide(ranking, incumbent, POLICY, reference=Reference(0, "", incumbent)).promote
        real = int(ranking.ranked[0].name) if promote else champion
        assert real == end, f"the real functions chose {real}, the arrays {end}"


def _candidate(name: str, scores: np.ndarray, cost: float) -> Candidate:
    rows = scores.astype(float).tolist()
    metrics = {"score/mean": sum(rows) / len(rows), "size/bytes": float(cost)}
    return Candidate(name, f"m-{name}", f"f-{name}", metrics, {"score": rows})


def exact() -> None:
    """Print the worst error and coverage of a paired binary difference over all outcomes."""
    print("| rows | error at 0.025 | error at 0.025 / 15, as part of 0.05 / 15 | coverage at 0.95 |\n|---|---|---|---|")
    for rows in (10, 20, 30, 50, 80, 118, 200, 300):
        error, covered = exact_errors(rows, 1)
        print(f"| {rows} | {error:.4f} | {exact_errors(rows, 15)[0] / (ALPHA / 15):.2f} | {covered:.4f} |", flush=True)


def exact_errors(rows: int, claims: int) -> tuple[float, float]:
    """Return the largest one-sided error at LEVEL / claims and the least coverage, over all outcomes of many truths."""
    grid = (0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
    won, lost = (counts.ravel() for counts in np.meshgrid(np.arange(rows + 1), np.arange(rows + 1)))
    won, lost = won[won + lost <= rows], lost[won + lost <= rows]
    center = (won - lost) / (rows + 2)
    error = np.sqrt((won + lost + 2 - (rows + 2) * center**2) / (rows + 1) / (rows + 2))
    freedom = rows - np.maximum(np.maximum(won, lost), rows - won - lost) + FREEDOM
    outcomes, level = np.stack([won, lost, rows - won - lost], 1), LEVEL / claims
    errors, coverages = [], []
    for wins, losses in itertools.product(grid, grid):
        if wins + losses <= 1:
            weights = multinomial.pmf(outcomes, rows, [wins, losses, 1 - wins - losses])
            doubt = stdtr(freedom, (wins - losses - center) / error)
            errors.append(weights[doubt <= level].sum())
            coverages.append(weights[(doubt >= level) & (doubt <= 1 - level)].sum())
    return float(max(errors)), float(min(coverages))


def drift(chains: int) -> None:
    """Print what ten promotions in a row lose, with and without the reference."""
    heads = ["rows", "each is worse by", "lost on average", "at most", "over a margin", "on average without reference"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for rows, step in itertools.product((118, 300, 1000), (MARGIN / 4, MARGIN / 2, MARGIN)):
        losses = {guarded: [chain(rows, step, guarded, seed) for seed in range(chains)] for guarded in (True, False)}
        guarded, free = np.array(losses[True]), np.array(losses[False])
        over = (guarded > MARGIN + 1e-9).mean()
        print(
            f"| {rows} | {step:g} | {guarded.mean():.4f} | {guarded.max():.4f} | {over:.4f} | {free.mean():.4f} |",
            flush=True,
        )


def chain(rows: int, step: float, guarded: bool, seed: int) -> float:
    """Return the true loss after ten cheaper variants, each worse than the champion of its time by `step`."""
    draw = np.random.default_rng([rows, seed])
    shared, lost = draw.random(rows), 0.0
    champion = _candidate("0", _answers(shared, BEST, draw), 100)
    reference = Reference(champion.metrics["score/mean"], "0", champion)
    for place in range(1, 11):
        new = _candidate(str(place), _answers(shared, BEST - lost - step, draw), 100 * 0.8**place)
        ranking = rank([champion, new], POLICY, champion.model_id)
        if decide(ranking, champion, POLICY, reference=reference if guarded else NO_REFERENCE).promote:
            champion, lost = new, lost + step
            if new.metrics["score/mean"] >= (reference.score or 0):
                reference = Reference(new.metrics["score/mean"], new.name, new)
    return lost


def _answers(shared: np.ndarray, mean: float, draw: np.random.Generator) -> np.ndarray:
    """Return binary scores that are linked with those of the other variants."""
    return np.where(draw.random(len(shared)) < 0.9, shared, draw.random(len(shared))) < mean


if __name__ == "__main__":
    main()
