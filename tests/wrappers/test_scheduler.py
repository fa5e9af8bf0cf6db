"""The scheduler and its sequences, on engines that fail in every way."""

import logging
import threading

import numpy as np
import pytest

from steps.wrappers.contract.errors import RequestError
from steps.wrappers.engines import scheduler as scheduler_module
from steps.wrappers.engines.batching import choose_tokens
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings


class _Letters:
    """A tokenizer whose tokens are characters. `on_decode` is called each time one is decoded."""

    end_tokens = frozenset()

    def __init__(self):
        self.decoded = 0

    def detokenizer(self):
        return self

    def push(self, token):
        self.decoded += 1
        self.on_decode()
        return chr(token)

    def finish(self):
        return ""

    def on_decode(self):
        pass


class _Engine:
    """An engine that generates "a" for every sequence, and raises in the places that `failing` names."""

    cache_tokens = None

    def __init__(self, *failing):
        self.rows, self.failing = [], set(failing)

    def _may_fail(self, place):
        if place in self.failing:
            raise SystemExit("secret")

    @property
    def max_batch_size(self):
        self._may_fail("admission")
        return 2

    def step(self, arriving):
        self._may_fail("step")
        self.rows += arriving
        return self._tokens()

    def _tokens(self):
        """The scheduler reads the tokens after the step."""
        self._may_fail("tokens")
        yield from [(sequence, ord("a")) for sequence in self.rows]

    def remove(self, sequences):
        self._may_fail("remove")
        self.rows = [row for row in self.rows if row not in sequences]

    def reset(self):
        self._may_fail("reset")
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


class _PrefillEngine(_Engine):
    """An engine that, as the real ones, advances nobody else when it admits."""

    def step(self, arriving):
        self.rows += arriving
        return [(sequence, ord("a")) for sequence in arriving or self.rows]


def test_short_requests_that_keep_arriving_do_not_hold_up_a_long_one():
    scheduler = Scheduler(_PrefillEngine())
    finished = []
    scheduler.on_finished = finished.append
    long, short = _sequence(max_tokens=50), [_sequence(max_tokens=1) for _ in range(500)]
    scheduler.submit([long, *short])
    assert all(sequence.done.wait(30) for sequence in [long, *short])
    assert _until(lambda: len(finished) == 501)
    assert finished.index(long) < 60


class _RecordingEngine(_Engine):
    """An engine with eight slots that records how many sequences arrive together."""

    max_batch_size = 8

    def __init__(self):
        super().__init__()
        self.arrived = []

    def step(self, arriving):
        self.arrived += [len(arriving)] if arriving else []
        return super().step(arriving)


@pytest.mark.parametrize(
    ("patient", "arrived"),
    [
        (True, [8, 2, 2, 1]),  # the last one has nobody to wait for
        (False, [8, 1, 1, 1, 1, 1]),
    ],
)
def test_rows_of_a_batch_job_begin_together(patient, arrived):
    engine = _RecordingEngine()
    scheduler = Scheduler(engine)
    # Each of the first eight ends by itself, and the others after all of them.
    sequences = [_sequence(max_tokens) for max_tokens in (*range(2, 18, 2), *[100] * 5)]
    scheduler.submit(sequences, patient=patient)
    scheduler.wait(sequences)
    assert engine.arrived == arrived


def test_an_awaited_row_does_not_wait_for_those_of_a_batch_job():
    engine = _RecordingEngine()
    scheduler = Scheduler(engine)
    job, awaited = [_sequence(max_tokens) for max_tokens in (2, *[1000] * 7)], [_sequence(), _sequence()]
    job[1].tokenizer.on_decode = lambda: engine.arrived == [8] and scheduler.running == 7 and scheduler.submit(awaited)
    scheduler.submit(job, patient=True)
    scheduler.wait(job)
    assert engine.arrived[:2] == [8, 1]


@pytest.mark.parametrize("place", ["step", "remove", "admission", "tokens"])
def test_engine_failure_is_reported_and_the_next_sequences_are_completed(caplog, place):
    engine = _Engine()
    scheduler = Scheduler(engine)
    assert scheduler.is_healthy()
    engine.failing = {place}
    with caplog.at_level(logging.ERROR):
        codes = _run(scheduler)
        assert set(codes) <= {"engine_failed", None}
        # A sequence is removed after its end, so it has its answer.
        assert ("engine_failed" in codes) is (place != "remove")
        assert _until(lambda: not scheduler.is_healthy())
    assert "SystemExit: secret" in caplog.text
    engine.failing = set()
    assert _run(scheduler) == [None] * 5
    assert scheduler.is_healthy()


def test_engine_that_cannot_be_reset_is_unhealthy_until_it_can():
    engine = _Engine("step", "reset")
    scheduler = Scheduler(engine)
    assert _run(scheduler) == ["engine_failed"] * 5
    engine.failing = {"reset"}
    assert _run(scheduler) == ["engine_failed"] * 5
    assert not scheduler.is_healthy()
    engine.failing = set()
    assert _run(scheduler) == [None] * 5
    assert scheduler.is_healthy()


def test_repaired_engine_becomes_healthy_without_any_request():
    engine = _Engine("step")
    scheduler = Scheduler(engine)
    _run(scheduler)
    assert not any(scheduler.is_healthy() or threading.Event().wait(0.01) for _ in range(20))
    engine.failing = set()
    assert _until(scheduler.is_healthy)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_dead_engine_thread_is_reported_and_replaced(monkeypatch):
    engine = _Engine("tokens")
    scheduler = Scheduler(engine)
    first = _sequence()
    with monkeypatch.context() as patch:
        # The thread handles every error of the engine, but not an error of the log.
        patch.setattr(scheduler_module.logger, "exception", lambda *_: 1 / 0)
        scheduler.submit([first])
        assert _until(lambda: not scheduler.is_healthy())
    engine.failing = set()
    assert _run(scheduler) == [None] * 5
    assert first.done.wait(30)
    assert scheduler.is_healthy()


def test_cancelled_sequence_does_not_make_a_failed_engine_healthy():
    scheduler = Scheduler(_Engine("step"))
    _run(scheduler)
    cancelled = _sequence()
    cancelled.cancel()
    scheduler.submit([cancelled])
    assert cancelled.done.wait(30)
    assert cancelled.error.code == "cancelled"
    assert not scheduler.is_healthy()


def test_stream_is_queued_before_its_first_piece_is_read(monkeypatch):
    monkeypatch.setattr(scheduler_module, "MAX_WAITING", 0)
    with pytest.raises(RequestError, match="queue_full"):
        Scheduler(_Engine()).stream(_sequence())


@pytest.mark.parametrize("logits", [np.full(9, np.nan), np.append(np.zeros(8), np.nan), np.full(9, np.inf)], ids=str)
@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 2}, {}], ids=str)
def test_sequence_with_invalid_logits_fails_alone(logits, settings):
    bad, good = _sequence(temperature=1.0, **settings), _sequence(temperature=1.0, **settings)
    table = [logits.astype(np.float32), np.eye(9, dtype=np.float32)[4] * 1000]
    assert choose_tokens([bad, good], [0, 0], lambda row: table[row]) == [(good, 4)]
    assert bad.error.code == "engine_failed"


def test_stream_never_shows_the_beginning_of_a_stop_string():
    sequence, seen = _sequence(max_tokens=9, stop=("abc",)), []
    tokenizer = sequence.tokenizer

    def read():
        tokenizer.on_decode = int
        seen.append(sequence.settled_text())
        tokenizer.on_decode = read

    tokenizer.on_decode = read
    for letter in "xabc":
        sequence.push(ord(letter))
        seen.append(sequence.settled_text())
    assert set(seen) <= {"", "x"}
    assert (sequence.text, sequence.finish_reason) == ("x", "stop")


def test_each_token_is_decoded_once():
    plain, with_stop = _sequence(max_tokens=50), _sequence(max_tokens=50, stop=("b",))
    for sequence in (plain, with_stop):
        for _ in range(50):
            sequence.push(ord("a"))
            sequence.settled_text()
    assert (plain.tokenizer.decoded, with_stop.tokenizer.decoded) == (50, 50)
    assert plain.text == with_stop.text == "a" * 50
