"""Two checkpoints, really built and asked: int4 wins where it is truly as good and loses where it is truly worse.

This is the first seed of `python -m tests.benchmarks.promotion seeds`.
"""

import sys

import pytest

from tests.benchmarks import seeds


@pytest.mark.slow
@pytest.mark.parametrize("kind", seeds.RIGHT)
def test_the_right_one_of_two_real_builds_wins(kind, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    scores, champion, _ = seeds.race(kind, 0, tmp_path)
    assert champion == seeds.RIGHT[kind]
    lost = scores[seeds.RIGHT["worse"]] - scores[seeds.RIGHT["as_good"]]
    assert lost > 0.15 if kind == "worse" else lost < 0.05
