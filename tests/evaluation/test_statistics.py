"""Confidence intervals and paired differences."""

import math
import random

import pytest

from steps.evaluation.statistics import difference, interval


def test_the_interval_contains_the_mean_and_is_reproducible():
    scores = [1.0] * 60 + [0.0] * 40
    low, high = interval(scores)
    assert 0.45 < low < 0.6 < high < 0.75
    assert interval(scores) == (low, high)


def test_a_higher_confidence_gives_a_wider_interval():
    scores = [float(number % 7) for number in range(50)]
    narrow, wide = interval(scores, alpha=0.5), interval(scores, alpha=0.01)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("scores", [[1.0], [0.5, 0.5, 0.5]])
def test_equal_scores_give_an_interval_without_width(scores):
    assert interval(scores) == (scores[0], scores[0])


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
    assert (paired.mean, paired.low, paired.high) == (0.0, 0.0, 0.0)
    assert not paired.better
    assert not paired.worse


def test_scores_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="same rows, got 2 and 1"):
        difference([1.0, 0.0], [1.0])


def test_a_row_that_either_side_skipped_does_not_count():
    paired = difference([1.0, 0.0, math.nan, 1.0], [0.0, math.nan, 1.0, 0.0])
    assert (paired.mean, paired.low, paired.high) == (1.0, 1.0, 1.0)
