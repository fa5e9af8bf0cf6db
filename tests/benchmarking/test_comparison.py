"""Two sides side by side: which ratio they give, and when there is none."""

import itertools

import pytest

from steps.benchmarking import report
from steps.benchmarking.comparison import DRIFT, TRIES, Comparison, Side, compare
from steps.benchmarking.control import control

QUIET = itertools.repeat(1.0)
FACTS = {"processor": "P", "cores": 2, "memory_bytes": 8e9, "read_bandwidth": 2e10}


def _compared(ours, theirs, unit="tokens/s", rounds=3, controls=QUIET, **fields):
    """Compare two lists of measurements, which repeat; return the result and the order of the sides."""
    order = []

    def side(name, values):
        numbers = itertools.cycle(values)

        def measure():
            order.append(name)
            return next(numbers)

        return Side(name, measure)

    controls = iter(controls)
    comparison = Comparison(side("ours", ours), side("theirs", theirs), unit, **fields)
    return compare("engines", comparison, rounds, lambda: next(controls)), order


@pytest.mark.parametrize(
    ("unit", "ours", "theirs", "ratio"),
    [("tokens/s", 300, 100, 3), ("tokens/s", 50, 100, 0.5), ("s", 2, 10, 5), ("bytes", 10, 1000, 100)],
)
def test_a_ratio_above_one_means_that_ours_is_better(unit, ours, theirs, ratio):
    result, _ = _compared([ours], [theirs], unit)
    assert result.ratio.low == result.ratio.median == result.ratio.high == pytest.approx(ratio)


def test_each_round_gives_a_ratio_of_its_own():
    """The machine gets slower, and both sides with it: the ratio stays."""
    result, _ = _compared([8, 4, 2], [4, 2, 1], warm_up=False)
    assert (result.ratio.low, result.ratio.high) == (2, 2)
    assert (result.ours.low, result.ours.median, result.ours.high) == (3, 4, 6)


def test_the_sides_take_turns_after_a_round_that_does_not_count():
    _, order = _compared([1], [1])
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_a_noisy_round_is_repeated_and_does_not_count():
    """Its control measurement changes while the second round runs."""
    controls = [1, 1, 1, 1, 1 + 2 * DRIFT, 1, 1, 1, 1, 1, 1, 1]
    result, _ = _compared([2, 90, 2, 2], [1], warm_up=False, controls=controls)
    assert [each.counts for each in result.rounds] == [True, False, True, True]
    assert (result.ratio.low, result.ratio.high, result.ours.high) == (2, 2, 2)


def test_a_machine_that_stays_noisy_gets_no_ratio():
    controls = itertools.cycle([1, 1.05, 1.2])
    result, _ = _compared([2], [1], controls=controls)
    assert len(result.rounds) == TRIES * 3
    assert result.ratio is None
    line = report.sentence(result)
    assert "2 tokens/s against theirs 1 tokens/s: no ratio, because the machine was too noisy" in line
    assert "times" not in line
    assert "| too noisy |" in report.markdown([result], FACTS)
    assert list(report.plot([result]).axes[0].patches) == []


def test_bytes_do_not_depend_on_the_machines_speed():
    result, order = _compared([10], [1000], "bytes", rounds=1, controls=itertools.cycle([1, 2]), warm_up=False)
    assert (result.ratio.median, len(order)) == (pytest.approx(100), 2)


def test_a_comparison_can_do_with_fewer_rounds():
    fewer = Comparison(Side("ours", lambda: 2.0), Side("theirs", lambda: 1.0), warm_up=False, rounds=1)
    assert len(compare("storage", fewer, 5, lambda: 1.0).rounds) == 1


def test_a_result_is_a_line_a_row_and_a_bar():
    result, _ = _compared([300, 330, 360], [100], warm_up=False)
    assert report.sentence(result) == (
        "engines: ours 330 (315 to 345) tokens/s against theirs 100 tokens/s: 3.3 (3.15 to 3.45) times as fast"
    )
    assert report.markdown([result], FACTS).splitlines()[-1] == (
        "| engines | ours | 330 (315 to 345) | theirs | 100 | tokens/s | 3.3 (3.15 to 3.45) |"
    )
    (bar,) = report.plot([result]).axes[0].patches
    assert bar.get_width() == pytest.approx(3.3)


def test_the_control_is_the_same_work_every_time():
    check = control("cpu")
    assert 0 < check() < 5
