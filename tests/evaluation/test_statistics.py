"""Confidence intervals and paired differences."""

import math
import random

import pytest

from steps.evaluation.statistics import (
    corrected,
    corrections,
    difference,
    interval,
    paired,
    power_sentence,
    rows_needed,
)
from tests.benchmarks.promotion import exact_errors


def test_the_interval_contains_the_mean_and_is_reproducible():
    scores = [1.0] * 60 + [0.0] * 40
    low, high = interval(scores)
    assert 0.45 < low < 0.6 < high < 0.75
    assert interval(scores) == (low, high)


def test_a_higher_confidence_gives_a_wider_interval():
    scores = [float(number % 7) for number in range(50)]
    narrow, wide = interval(scores, alpha=0.5), interval(scores, alpha=0.01)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


EDGES = {
    "one row": [1.0],
    "one graded row": [0.5],
    "all right": [1.0] * 200,
    "all wrong": [0.0] * 200,
    "all equal": [0.5] * 200,
}


@pytest.mark.parametrize("scores", EDGES.values(), ids=EDGES)
def test_no_sample_gives_an_interval_without_width(scores):
    low, high = interval(scores)
    assert 0 <= low <= scores[0] <= high <= 1
    assert high - low > 3 / (len(scores) + 100)
    paired_with_itself = difference(scores, scores)
    assert paired_with_itself.low < 0 < paired_with_itself.high


def test_few_rows_are_not_certain():
    assert not difference([0.0], [1.0]).worse
    assert not difference([0.0] * 3, [1.0] * 3).worse
    assert difference([0.0] * 10, [1.0] * 10).worse


def test_binary_scores_have_the_interval_of_clopper_and_pearson():
    """The values are those of Newcombe, Statistics in Medicine 17 (1998), table I, method 5."""
    assert interval([1.0] * 81 + [0.0] * 182) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert interval([0.0] * 20) == pytest.approx((0, 0.1684), abs=5e-5)


def test_paired_binary_scores_are_those_of_bonett_and_price_with_students_quantile():
    ours, theirs = [1.0] * 20 + [0.0] * 80, [1.0] * 12 + [0.0] * 83 + [1.0] * 5
    estimate = paired(ours, theirs)
    won, lost, rows = 9 / 102, 6 / 102, 102
    assert estimate.center == pytest.approx(won - lost)
    assert estimate.error == pytest.approx(math.sqrt((won + lost - (won - lost) ** 2) / (rows - 1)))


def test_an_interval_and_a_doubt_agree():
    estimate = paired([1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20)
    low, _ = estimate.interval(0.1)
    assert estimate.doubt(low) == pytest.approx(0.05)
    assert estimate.bound(0.05) == low


@pytest.mark.parametrize(
    ("doubts", "true", "factors"),
    [
        ([0.01, 0.02, 0.5], 0, [3, 2, 1]),
        ([0.5, 0.02, 0.01], 0, [1, 2, 3]),
        ([0.01, 0.02, 0.5], 1, [2, 2, 1]),
        ([0.01, 0.99, 0.999], 0, [1, 1, 1]),
        ([0.01], 1, [1]),
    ],
)
def test_doubts_are_corrected_for_their_number(doubts, true, factors):
    assert corrections(doubts, 0.025, true) == factors


def test_a_corrected_doubt_is_no_smaller_than_the_one_before():
    assert corrected([0.011, 0.02, 0.012], [3, 1, 2]) == pytest.approx([0.033, 0.033, 0.033])


def test_the_errors_stay_below_alpha_over_all_outcomes():
    """118 rows, all outcomes of two binary variants: no draws."""
    worst, covered = exact_errors(118, 1), exact_errors(118, 15)
    assert worst[0] <= 0.05
    assert covered[0] <= 0.05 / 15
    assert worst[1] >= 0.94


def test_the_sentence_about_power():
    assert power_sentence(118, 0.05, 0.05) == (
        "118 rows: differences under about 0.08 cannot be told apart; for a margin of 0.05 you need about 320 rows "
        "(if two variants disagree on one row in ten)."
    )
    assert power_sentence(1, 0.0, 0.05, 8) == (
        "1 row and 8 variants: differences under about 1.00 cannot be told apart "
        "(if two variants disagree on one row in ten)."
    )
    assert rows_needed(0.05, 0.05) == 314


def test_an_empty_list_of_scores_is_refused():
    with pytest.raises(ValueError, match="at least one score"):
        interval([])


def test_the_interval_covers_the_true_mean_at_about_its_confidence():
    draw = random.Random(0)
    hits = 0
    for _ in range(200):
        low, high = interval([float(draw.random() < 0.7) for _ in range(80)])
        hits += low <= 0.7 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairing_finds_a_difference_that_the_means_alone_would_hide():
    hard = [float(number) for number in range(40)]
    ours = [score + 0.5 + 0.1 * (index % 2) for index, score in enumerate(hard)]
    paired = difference(ours, hard)
    assert paired.better
    assert not paired.worse
    assert difference(hard, ours).worse


def test_equal_scores_are_neither_better_nor_worse():
    paired = difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert paired.mean == 0
    assert not paired.better
    assert not paired.worse


def test_scores_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same rows, got 2 and 1"):
        difference([1.0, 0.0], [1.0])


def test_a_row_that_either_side_skipped_does_not_count():
    with_skipped = difference([1.0, 0.0, math.nan, 1.0], [0.0, math.nan, 1.0, 0.0])
    assert with_skipped == difference([1.0, 1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="at least one row"):
        difference([math.nan], [1.0])
