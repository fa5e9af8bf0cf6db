"""Prefill prompts in pieces, so that a long one does not stop the tokens of the rows that are running.

A prompt is computed in passes. While tokens of running rows are awaited by a client, passes and the rows' tokens take
turns, and both turns together take about `GAP_SECONDS`. Prompts that arrived at different times take turns too, so a
short one does not wait for a long one. Rows of a batch job are not awaited token by token: there passes are as long as
they can be, and how they are cut does not depend on the time.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .sequence import Sequence

# How long a client should wait from one token to the next, and how much of that time passes get even if the rows are
# slow. Less time means shorter passes, which cost speed when many clients arrive at once.
GAP_SECONDS, LEAST_SECONDS = 0.22, 0.1
# Tokens of the first pass, and of the shortest.
FIRST_PIECE, SHORTEST_PIECE = 64, 32
# Copying the keys and values of this many tokens takes a turn of its own.
LONG_COPY = 512
# How long sequences that arrive together may take to begin together, if no row is awaited.
BURST_SECONDS = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """What one pass did.

    `tokens` is how many it computed, `copied` of how many it copied the keys and values, and `chosen` has the first
    tokens of the sequences that are complete. `ends_turn` says that the next one should not share a turn with it.
    """

    tokens: int
    chosen: tuple[tuple[Sequence, int], ...] = ()
    copied: int = 0
    ends_turn: bool = False


# Runs one pass after the other, and ends with a result.
Passes = Generator[Pass, None, Result]


class Admission:
    """The sequences whose prompts are not complete yet."""

    def __init__(self, enter: Callable[[list[Sequence]], Passes[None]], longest: int, together: int = 0) -> None:
        """Begin with no sequence.

        Args:
            enter: Runs the passes of sequences that arrive together.
            longest: The tokens of the longest pass.
            together: How many tokens prompts may have in all that are computed side by side; 0: those of one pass.
        """
        self._enter, self.longest, self.together = enter, longest, together
        self._entering: deque[tuple[list[Sequence], Passes[None]]] = deque()
        self._piece = min(FIRST_PIECE, longest)
        self._is_awaited = self._was_last = self._is_late = False
        # When the rows' turn began, and how long passes may take between two turns.
        self._turn: float | None = None
        self._budget = GAP_SECONDS

    @property
    def piece(self) -> int:
        """Return how many tokens the next pass may compute, padding included."""
        fitting = max(self._piece // 2, SHORTEST_PIECE) if self._is_late else self._piece
        return min(fitting, self.longest) if self._is_awaited else self.longest

    @property
    def room(self) -> int:
        """Return how many tokens prompts may have that are computed side by side now, padding included."""
        return self.piece if self._is_awaited else max(self.piece, self.together)

    @property
    def is_busy(self) -> bool:
        """Return True if there are prompts that are not complete."""
        return bool(self._entering)

    def divides(self, tokens: int) -> bool:
        """Return True if a client waits for a row, and copying so many tokens would make it wait longer."""
        return self._is_awaited and tokens >= LONG_COPY

    def copying(self, tokens: int, copy: Callable[[], Result]) -> Passes[Result]:
        """Copy the keys and values of tokens, in a turn of its own if that takes long; the result is that of `copy`."""
        is_long = self.divides(tokens)
        if is_long:
            yield Pass(0, ends_turn=True)
        result = copy()
        if is_long:
            yield Pass(0, copied=tokens)
        return result

    def columns(self, count: int, rows: int) -> Iterator[tuple[int, int]]:
        """Split columns of as many rows into pieces; yield the first column of each and the one after its last."""
        start = 0
        while start < count:
            end = min(count, start + max(1, self.piece // rows))
            yield start, end
            start = end

    def clear(self) -> None:
        """Forget every sequence."""
        while self._entering:
            self._entering.pop()[1].close()

    def step(self, arriving: list[Sequence], rows: list[Sequence]) -> list[tuple[Sequence, int]] | None:
        """Run some passes, and return the first tokens of new rows; None if it is the running rows' turn."""
        if self._turn is not None:
            taken, self._turn = time.perf_counter() - self._turn, None
            self._budget = max(GAP_SECONDS - taken, LEAST_SECONDS)
        if arriving:
            self._entering.append((arriving, self._enter(arriving)))
        self._is_awaited = any(sequence.is_awaited for sequence in rows)
        chosen: list[tuple[Sequence, int]] = []
        worked = 0 if self._is_awaited and self._was_last else self._run(chosen)
        self._was_last = worked > 0
        if worked or not rows:
            return chosen
        self._turn = time.perf_counter() if self._entering else None
        return None

    def _run(self, chosen: list[tuple[Sequence, int]]) -> int:
        """Run passes until the time is over; add to the first tokens, and return how many tokens were worked on."""
        started, worked = time.perf_counter(), 0
        # A pass is shortened only a little by what ran before it, so none begins after half of the time.
        limit = self._budget / 2 if self._is_awaited else BURST_SECONDS
        while self._entering and (not worked or time.perf_counter() - started < limit):
            self._is_late = time.perf_counter() - started > limit / 2
            done = self._next()
            worked += done.tokens + done.copied
            chosen += done.chosen
            if done.tokens and not chosen and not self._is_awaited:
                break  # nobody has begun, so others may arrive
            if worked and done.ends_turn:
                break
        return worked

    def _next(self) -> Pass:
        """Run the next pass of the sequences whose turn it is."""
        started, (sequences, passes) = time.perf_counter(), self._entering.popleft()
        if all(sequence.is_over for sequence in sequences):
            passes.close()
            return Pass(0)
        done = next(passes, None)
        if done is None:
            return Pass(0)
        self._entering.append((sequences, passes))
        if done.tokens:
            self._fit(done.tokens, time.perf_counter() - started)
        return done

    def _fit(self, tokens: int, seconds: float) -> None:
        """Let the next pieces take what the rows' turn leaves of `GAP_SECONDS`, by the time that the last one took."""
        fitting = tokens * self._budget / seconds
        # A short pass takes longer for each of its tokens, so if it was in time it says only whether more of them fit.
        if seconds > self._budget or tokens >= self._piece or fitting > self._piece:
            # Powers of two, so that the sizes change seldom.
            self._piece = max(SHORTEST_PIECE, 1 << (int(fitting) | 1).bit_length() - 1)
