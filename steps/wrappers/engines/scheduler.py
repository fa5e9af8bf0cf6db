"""Share one engine between the threads of a server: requests that arrive together share a batch.

One thread owns the engine. Callers submit sequences and wait. At every token the thread admits new sequences and
removes those that are finished or cancelled, so the batch stays full. The queue has a limit: a client above it is
refused at once (HTTP 429) instead of waiting without end. A caller in this process waits for room.
"""

import contextlib
import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Condition, Thread
from typing import Protocol

from mlflow.protos.databricks_pb2 import CANCELLED, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE

from ..contract.errors import RequestError, engine_failed
from .lifetime import look_after, stop_at_exit
from .sequence import Sequence

MAX_WAITING = 2048
# The thread refers to the engine. It ends when it is idle, so that a model that is no longer used can be freed.
IDLE_SECONDS = 1.0
# How long a caller that waits for room sleeps before it looks whether the engine's thread is still alive.
ROOM_SECONDS = 1.0
# The share of a batch that begins together in a batch job: a pass over several prompts costs less than one for each.
TOGETHER = 1 / 4

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What a scheduler needs from an engine. Only the scheduler's thread calls it."""

    max_batch_size: int
    # How many tokens a batch may have, each row counted as long as the longest can get; None for any number.
    cache_tokens: int | None

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Admit the arriving sequences, advance the batch and return the new tokens."""

    def remove(self, sequences: list[Sequence]) -> None:
        """Forget sequences that are finished or cancelled."""

    def reset(self) -> None:
        """Forget every sequence, after an error."""


class Scheduler:
    """Run the sequences of many callers on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._changed = Condition()
        self._thread: Thread | None = None
        self._failed = False
        self._stopped = False
        self._last_failed: Sequence | None = None
        look_after(self)
        # Called with every sequence that leaves the batch, in the engine's thread.
        self.on_finished: Callable[[Sequence], None] = lambda _: None

    @property
    def engine(self) -> Engine:
        """Return the engine that completes the sequences."""
        return self._engine

    @property
    def running(self) -> int:
        """Return the number of sequences in the engine's batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Return the number of sequences that wait for a slot."""
        return len(self._waiting)

    @property
    def cached_tokens(self) -> int:
        """Return the number of tokens that the engine keeps for the sequences of its batch."""
        return sum(sequence.length for sequence in self._running)

    @property
    def is_idle(self) -> bool:
        """Return True if no thread holds the engine: it starts with the next sequence."""
        return self._thread is None

    def is_healthy(self) -> bool:
        """Return True unless the engine's last step failed as a whole or its thread died.

        If it is not healthy, an idle engine is asked for one token. So the next call can report that it works again,
        even if no request arrives in between.
        """
        healthy = not self._failed and (self._thread is None or self._thread.is_alive())
        if not healthy and self._last_failed and not self._waiting and not self._running:
            probe = self._last_failed
            settings = replace(probe.settings, temperature=0.0, max_tokens=1)
            self.submit([Sequence(probe.prompt[:1], settings, probe.tokenizer)])
        return healthy

    def run(self, sequences: list[Sequence]) -> None:
        """Complete the sequences. Raise the error of the first one that failed; cancel them however it ends."""
        self.submit(sequences)
        self.wait(sequences)

    def wait(self, sequences: list[Sequence]) -> None:
        """Wait for submitted sequences. Raise the error of the first one that failed; cancel them however it ends."""
        try:
            for sequence in sequences:
                sequence.done.wait()
                if sequence.error is not None:
                    raise sequence.error
        finally:
            self.cancel(sequences)

    def stream(self, sequence: Sequence) -> Iterator[str]:
        """Queue a sequence and return an iterator over its text as it grows."""
        # Not a generator itself, so that a full queue is refused here and not at the first piece.
        self.submit([sequence])
        return self._pieces(sequence)

    def _pieces(self, sequence: Sequence) -> Iterator[str]:
        sent = 0
        try:
            ended = False
            while not ended:
                sequence.progress.wait()
                sequence.progress.clear()
                ended = sequence.done.is_set()
                text = sequence.settled_text()
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
            if sequence.error is not None:
                raise sequence.error
        finally:
            self.cancel([sequence])

    def submit(self, sequences: list[Sequence], patient: bool = False) -> None:
        """Queue sequences, short ones first, so that the rows of a batch have similar lengths.

        If the queue is full, wait for room if `patient`, otherwise raise RequestError. Nobody waits for the single
        tokens of patient callers.
        """
        with self._changed:
            self._start()
            while len(self._waiting) + len(sequences) > MAX_WAITING and (self._waiting or not patient):
                if not patient:
                    waiting = f"{len(self._waiting)} completions are waiting and at most {MAX_WAITING} may wait"
                    raise RequestError("queue_full", f"{waiting}; try again later", REQUEST_LIMIT_EXCEEDED)
                self._changed.wait(ROOM_SECONDS)
                self._start()
            for sequence in sequences:
                sequence.is_awaited = not patient
            self._waiting.extend(sorted(sequences, key=lambda sequence: sequence.length))
            self._changed.notify_all()

    def _start(self) -> None:
        """Start the thread unless it is running."""
        if self._stopped:
            message = "the process is ending, so the model answers no more"
            raise RequestError("stopped", message, TEMPORARILY_UNAVAILABLE)
        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=self._work, name="phi3-engine", daemon=True)
            self._thread.start()
            stop_at_exit()

    def cancel(self, sequences: list[Sequence]) -> None:
        """Release the slots of sequences that nobody waits for, at the next token."""
        for sequence in sequences:
            sequence.cancel()

    def stop(self) -> None:
        """Cancel every sequence, and return when the engine's thread has ended."""
        self._stopped = True
        thread = self._thread
        if thread is not None and thread.is_alive():
            with self._changed:
                self._changed.notify_all()
            thread.join()

    def begin_anew(self) -> None:
        """Begin anew in a forked process, which has neither the engine's thread nor the callers.

        Everything native is kept for ever: its threads are not there either, and freeing it would wait for them.
        """
        for part in vars(self._engine).values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))
        self._engine.reset()
        self._changed, self._thread = Condition(), None
        self._waiting, self._running = deque(), []

    def _work(self) -> None:
        arriving: list[Sequence] = []
        while not self._stopped:
            try:
                with self._changed:
                    if not self._changed.wait_for(self._is_wanted, IDLE_SECONDS):
                        self._engine.reset()  # what the engine has made may belong to this thread
                        self._thread = None
                        return
                    arriving = self._admit() if self._may_admit(arriving) else []
                    self._running += arriving
                if not self._stopped:
                    self._advance(arriving)
            except BaseException:  # whatever it is, the callers must not wait forever
                logger.exception("The engine failed")
                self._fail_sequences()
        _release([*self._waiting, *self._running])
        with contextlib.suppress(Exception):  # the process is ending
            self._engine.reset()

    def _may_admit(self, arrived: list[Sequence]) -> bool:
        """Return False after a step that admitted `arrived`, if others run.

        A step that admits advances nobody else. Without a step in between, short requests that keep arriving would
        hold up a long reply for as long as they do.
        """
        return not self._stopped and not (arrived and self._running)

    def _is_wanted(self) -> bool:
        return bool(self._stopped or self._waiting or self._running)

    def _admit(self) -> list[Sequence]:
        """Drop cancelled sequences from the queue, then take as many as the batch has slots for."""
        _release([sequence for sequence in self._waiting if sequence.cancelled])
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.cancelled)
        slots = self._engine.max_batch_size - len(self._running)
        admitted: list[Sequence] = []
        if self._saves_slots(slots):
            return admitted
        while self._waiting and len(admitted) < slots and self._has_room(admitted):
            admitted.append(self._waiting.popleft())
        self._changed.notify_all()
        return admitted

    def _saves_slots(self, slots: int) -> bool:
        """Return True if the next rows of a batch job should wait until there are slots for more of them."""
        together = min(int(TOGETHER * self._engine.max_batch_size), len(self._waiting))
        if not self._running or slots == 0 or slots >= together:
            return False
        return not any(sequence.is_awaited for sequence in [*self._running, *self._waiting])

    def _has_room(self, admitted: list[Sequence]) -> bool:
        """Return True if the next sequence fits into the cache, or if the batch is empty."""
        rows, limit = [*self._running, *admitted, self._waiting[0]], self._engine.cache_tokens
        return limit is None or len(rows) == 1 or len(rows) * max(row.longest for row in rows) <= limit

    def _advance(self, arriving: list[Sequence]) -> None:
        """Run one step of the engine, then remove the sequences that are finished or cancelled."""
        if not self._running:
            return
        if self._failed:
            self._engine.reset()
        for sequence, token in self._engine.step(arriving):
            _push(sequence, token)
        self._failed = False
        finished = [sequence for sequence in self._running if sequence.is_over]
        if finished:
            _release(finished)
            self._engine.remove(finished)
            self._running = [sequence for sequence in self._running if sequence not in finished]
            for sequence in finished:
                self.on_finished(sequence)

    def _fail_sequences(self) -> None:
        """Fail every running sequence; if none is running, fail the queue, because admission itself raised."""
        self._failed = True
        with self._changed:
            failed, self._running = self._running or list(self._waiting), []
            self._waiting = deque(sequence for sequence in self._waiting if sequence not in failed)
        for sequence in failed:
            self._last_failed = sequence
            if not sequence.done.is_set():
                sequence.fail(engine_failed())


def _push(sequence: Sequence, token: int) -> None:
    if sequence.done.is_set():
        return  # an engine may choose several tokens in one step, and not all of them are wanted
    try:
        sequence.push(token)
    except Exception as error:  # no error of one sequence may stop the others
        sequence.fail_internally(error)


def _release(sequences: list[Sequence]) -> None:
    """Wake the callers of sequences that were cancelled before their end."""
    for sequence in sequences:
        if not sequence.done.is_set():
            sequence.fail(RequestError("cancelled", "the reply was cancelled, because its client left", CANCELLED))
