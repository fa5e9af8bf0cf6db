"""How far the asking of a variant is, and what the whole evaluation will take."""

import pytest

from steps.evaluation import progress
from steps.output import Activity, duration


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only number is the time."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def advance(clock, total, batches, done=0, later=0):
    """Answer batches of (rows, seconds); return what the signs of life say after each."""
    doing, words = Activity("loading"), []
    report = progress.Progress("onnx-int4-chat", doing, later)
    report.start(total, done)
    for rows, seconds in batches:
        clock[0] += seconds
        report.advance(rows)
        words.append(doing.words)
    report.close()
    return words


def test_the_signs_of_life_say_rows_rate_and_time_left(clock, capsys):
    words = advance(clock, 120, [(1, 0.5), (59, 14.5)], done=40)
    assert words == [
        "asking onnx-int4-chat: 41 of 120 rows, 2 rows/s, 40 s left",
        "asking onnx-int4-chat: 100 of 120 rows, 4 rows/s, 5 s left",
    ]
    assert capsys.readouterr().out == ""


def test_a_long_evaluation_is_forecast_by_its_first_row_and_its_first_batch(clock, capsys):
    advance(clock, 120, [(1, 90), (1, 90), (64, 640), (54, 540)], later=3)
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "At the pace of its first row, onnx-int4-chat takes at most 3.0 h for the rows that are left, and the 3 "
        "variants after it 9.0 h more. Shorter: fewer variants (variants=quick), fewer rows (prompt_set.path=…) or a "
        "lower generation.max_tokens."
    )
    assert second.startswith("At the pace of its first batch of 64 rows, onnx-int4-chat takes 9 min for the rows")


def test_nothing_is_forecast_for_what_ends_within_minutes(clock, capsys):
    advance(clock, 120, [(1, 4), (119, 200)], later=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (540, "9 min"), (5999, "100 min"), (11_160, "3.1 h")]
)
def test_a_duration_is_short(seconds, words):
    assert duration(seconds) == words
