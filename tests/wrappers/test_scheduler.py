"""What the scheduler and its sequences promise whatever an engine does."""

import logging
import threading

import numpy as np
import pytest

from steps.wrappers.contract.errors import RequestError
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings, choose


class _Letters:
    """A tokenizer whose tokens are characters; `looked_at` is called whenever something is decoded."""

    end_tokens = frozenset()

    def __init__(self):
        self.decoded = 0

    def decode(self, tokens):
        self.decoded += 1
        self.looked_at()
        return "".join(map(chr, tokens))

    def looked_at(self):
        pass


class _Engine:
    """An engine that says "a" for every sequence."""

    max_batch_size = 2

    def __init__(self):
        self.rows = []

    def step(self, arriving):
        self.rows += arriving
        return [(sequence, ord("a")) for sequence in self.rows]

    def remove(self, sequences):
        self.rows = [row for row in self.rows if row not in sequences]

    def reset(self):
        self.rows = []


def _sequence(max_tokens=3, stop=(), temperature=0.0, top_p=1.0, top_k=0):
    return Sequence([1], Settings(temperature, top_p, top_k, max_tokens, stop, seed=1), _Letters())


def _run(scheduler, count=5):
    """Run some sequences at once, and return the codes of their errors."""
    sequences = [_sequence() for _ in range(count)]
    scheduler.submit(sequences)
    assert all(sequence.done.wait(30) for sequence in sequences)
    return [sequence.error and sequence.error.code for sequence in sequences]


def _until(condition):
    return any(condition() or threading.Event().wait(0.01) for _ in range(3000))


def _fail(*_):
    raise SystemExit("secret")


FAULTS = {
    "step": ("_engine", "step"),
    "remove": ("_engine", "remove"),
    "the letting in": (None, "_arriving"),
    "the advance": (None, "_advance"),
}


@pytest.mark.parametrize(("owner", "name"), FAULTS.values(), ids=FAULTS)
def test_whatever_fails_callers_are_told_and_the_next_ones_are_answered(monkeypatch, caplog, owner, name):
    scheduler = Scheduler(_Engine())
    assert scheduler.is_well()
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(getattr(scheduler, owner) if owner else scheduler, name, _fail)
        codes = _run(scheduler)
        assert set(codes) <= {"engine_failed", None}
        # Who is over when it is removed has its answer.
        assert ("engine_failed" in codes) is (name != "remove")
        assert _until(lambda: not scheduler.is_well())
    assert "SystemExit: secret" in caplog.text
    assert _run(scheduler) == [None] * 5
    assert scheduler.is_well()


def test_an_engine_that_cannot_be_reset_is_not_well_until_it_can(monkeypatch):
    scheduler = Scheduler(_Engine())
    with monkeypatch.context() as broken:
        broken.setattr(scheduler._engine, "reset", _fail)
        with monkeypatch.context() as once:
            once.setattr(scheduler._engine, "step", _fail)
            assert _run(scheduler) == ["engine_failed"] * 5
        assert _run(scheduler) == ["engine_failed"] * 5
        assert not scheduler.is_well()
    assert _run(scheduler) == [None] * 5
    assert scheduler.is_well()


def test_an_engine_that_works_again_is_well_although_nobody_asks_it_anything(monkeypatch):
    scheduler = Scheduler(_Engine())
    with monkeypatch.context() as broken:
        broken.setattr(scheduler._engine, "step", _fail)
        _run(scheduler)
        assert not any(scheduler.is_well() or threading.Event().wait(0.01) for _ in range(20))
    assert _until(scheduler.is_well)


def test_a_thread_that_is_gone_is_told_and_replaced():
    scheduler = Scheduler(_Engine())
    scheduler._thread = threading.Thread(target=int)
    scheduler._thread.start()
    scheduler._thread.join()
    assert not scheduler.is_well()
    assert _run(scheduler) == [None] * 5
    assert scheduler.is_well()


def test_a_failed_engine_is_not_well_again_because_somebody_left(monkeypatch):
    scheduler = Scheduler(_Engine())
    with monkeypatch.context() as broken:
        broken.setattr(scheduler._engine, "step", _fail)
        _run(scheduler)
    left = _sequence()
    left.cancelled = True
    scheduler.submit([left])
    assert left.done.wait(30)
    assert left.error.code == "cancelled"
    assert not scheduler.is_well()


def test_a_stream_is_in_the_queue_before_anything_is_read(monkeypatch):
    from steps.wrappers.engines import scheduler as module

    monkeypatch.setattr(module, "MAX_WAITING", 0)
    with pytest.raises(RequestError, match="queue_full"):
        Scheduler(_Engine()).stream(_sequence())


@pytest.mark.parametrize("logits", [np.full(9, np.nan), np.append(np.zeros(8), np.nan), np.full(9, np.inf)], ids=str)
@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 2}, {}], ids=str)
def test_nothing_is_drawn_from_what_is_no_number(logits, settings):
    bad, good = _sequence(temperature=1.0, **settings), _sequence(temperature=1.0, **settings)
    table = [logits.astype(np.float32), np.eye(9, dtype=np.float32)[4] * 1000]
    assert choose([bad, good], [0, 0], lambda row: table[row]) == [(good, 4)]
    assert bad.error.code == "engine_failed"


def test_a_stream_shows_no_beginning_of_a_stop_string_at_any_moment():
    sequence, seen = _sequence(max_tokens=9, stop=("abc",)), []
    tokenizer = sequence.tokenizer

    def look():
        tokenizer.looked_at = int
        seen.append(sequence.settled_text())
        tokenizer.looked_at = look

    tokenizer.looked_at = look
    for letter in "xabc":
        sequence.push(ord(letter))
        seen.append(sequence.settled_text())
    assert set(seen) <= {"", "x"}
    assert (sequence.text, sequence.finish_reason) == ("x", "stop")


def test_text_is_made_only_where_it_is_needed():
    plain, stopped = _sequence(max_tokens=50), _sequence(max_tokens=50, stop=("b",))
    for sequence in (plain, stopped):
        for _ in range(50):
            sequence.push(ord("a"))
            if sequence is stopped:
                sequence.settled_text()
    assert (plain.tokenizer.decoded, stopped.tokenizer.decoded) == (1, 50)
    assert plain.text == stopped.text == "a" * 50
