"""Share one engine between the threads of a server: requests that arrive together share a batch.

One thread owns the engine. Callers hand it sequences and wait; at every token the thread lets new
sequences in and takes finished and cancelled ones out, and so keeps the batch full. The queue has a
bound: a caller beyond it is told at once (HTTP 429) instead of waiting without end.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from threading import Condition, Thread
from typing import Protocol

from mlflow.protos.databricks_pb2 import CANCELLED, REQUEST_LIMIT_EXCEEDED

from ..contract.errors import RequestError, engine_failed
from .sequence import Sequence

MAX_WAITING = 2048
# The thread holds the engine: it ends when there is nothing to do, so that a model nobody uses any more is freed.
IDLE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What a scheduler needs of an engine; only the scheduler's thread calls it."""

    max_batch_size: int

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Take in the arriving sequences, advance the batch, return the new tokens."""

    def remove(self, sequences: list[Sequence]) -> None:
        """Forget sequences that are finished or cancelled."""

    def reset(self) -> None:
        """Forget every sequence, after an error."""


class Scheduler:
    """Run the sequences of many callers on one engine."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._changed = Condition()
        self._thread: Thread | None = None
        self._failed = False
        self._lost: Sequence | None = None

    def is_well(self) -> bool:
        """Whether the engine's last step did not fail as a whole, and its thread is there.

        An engine that is not well is asked for a token: the next time it is known whether it works again, also where
        nobody sends it requests any more.
        """
        well = not self._failed and (self._thread is None or self._thread.is_alive())
        if not well and self._lost and not self._waiting and not self._running:
            settings = replace(self._lost.settings, temperature=0.0, max_tokens=1)
            self.submit([Sequence(self._lost.prompt[:1], settings, self._lost.tokenizer)])
        return well

    def run(self, sequences: list[Sequence]) -> None:
        """Complete the sequences; raises what stopped them, and lets go of them on any way out."""
        self.submit(sequences)
        try:
            for sequence in sequences:
                sequence.done.wait()
                if sequence.error is not None:
                    raise sequence.error
        finally:
            self.cancel(sequences)

    def stream(self, sequence: Sequence) -> Iterator[str]:
        """Queue one sequence; the iterator completes it and yields its text as it grows."""
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

    def submit(self, sequences: list[Sequence]) -> None:
        """Queue sequences, the short ones first so that a batch has rows of like length."""
        with self._changed:
            if len(self._waiting) + len(sequences) > MAX_WAITING:
                raise RequestError(
                    "queue_full",
                    f"{len(self._waiting)} completions wait already, at most {MAX_WAITING} may: try again later",
                    REQUEST_LIMIT_EXCEEDED,
                )
            self._waiting.extend(sorted(sequences, key=lambda sequence: sequence.length))
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._work, name="phi3-engine", daemon=True)
                self._thread.start()
            self._changed.notify()

    def cancel(self, sequences: list[Sequence]) -> None:
        """Free the places of sequences that nobody waits for, at the next token."""
        for sequence in sequences:
            sequence.cancelled = True

    def _work(self) -> None:
        while True:
            try:
                with self._changed:
                    if not self._changed.wait_for(lambda: self._waiting or self._running, IDLE_SECONDS):
                        self._engine.reset()  # what it has made may belong to this thread
                        self._thread = None
                        return
                    arriving = self._arriving()
                    self._running += arriving
                self._advance(arriving)
            except BaseException:  # whatever it is, the callers must not wait for ever
                logger.exception("The engine failed")
                self._abandon()

    def _arriving(self) -> list[Sequence]:
        """Take from the queue what the batch has room for, and all that nobody waits for."""
        _let_go([sequence for sequence in self._waiting if sequence.cancelled])
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.cancelled)
        room = self._engine.max_batch_size - len(self._running)
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def _advance(self, arriving: list[Sequence]) -> None:
        """One step of the engine; the sequences that are over leave the batch."""
        if not self._running:
            return
        if self._failed:
            self._engine.reset()
        for sequence, token in self._engine.step(arriving):
            _push(sequence, token)
        self._failed = False
        over = [sequence for sequence in self._running if sequence.cancelled or sequence.done.is_set()]
        if over:
            _let_go(over)
            self._engine.remove(over)
            self._running = [sequence for sequence in self._running if sequence not in over]

    def _abandon(self) -> None:
        """Give up what runs, or where nothing runs what waits: then it is the letting in that fails."""
        self._failed = True
        with self._changed:
            lost, self._running = self._running or list(self._waiting), []
            self._waiting = deque(sequence for sequence in self._waiting if sequence not in lost)
        for sequence in lost:
            self._lost = sequence
            if not sequence.done.is_set():
                sequence.fail(engine_failed())


def _push(sequence: Sequence, token: int) -> None:
    try:
        sequence.push(token)
    except Exception as fault:  # whatever it is, the others go on
        sequence.break_off(fault)


def _let_go(sequences: list[Sequence]) -> None:
    """Release whoever waits for a sequence that was cancelled before its end."""
    for sequence in sequences:
        if not sequence.done.is_set():
            sequence.fail(RequestError("cancelled", "nobody waits for this reply any more", CANCELLED))
