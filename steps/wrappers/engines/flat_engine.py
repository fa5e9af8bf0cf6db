"""Continuous batching without padding, for engines whose cache holds sequences by number.

New prompts are computed in passes, each with tokens of as many prompts as it has room for, one after the other.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import psutil

from .admission import Admission, Pass, Passes
from .batching import Arrival, choose_tokens, look_up
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sampling import FloatArray
from .sequence import Sequence
from .speculation import Speculation, accepted_tokens, may_speculate
from .threads import cores, thread_limit

# Tokens of one pass. The kernels gain nothing from more.
PREFILL_TOKENS = 512

State = TypeVar("State")


@dataclass(frozen=True)
class Token:
    """A token to compute: its id, its position, its sequence, and whether the logits after it are wanted."""

    id: int
    position: int
    sequence: int
    is_wanted: bool = False


class Context(Protocol[State]):
    """A model and its cache. The tokens of a sequence come one after the other."""

    bytes_per_token: int
    # How many tokens its sequences may have; None for any number.
    cache_tokens: int | None
    # True if logits do not depend on the other tokens of a pass, and a sequence can be cut back and written over.
    is_exact: bool

    def run(self, tokens: list[Token]) -> FloatArray:
        """Compute tokens; return the wanted logits [wanted, vocabulary]."""

    def forget(self, sequence: int) -> None:
        """Drop a sequence."""

    def empty(self) -> None:
        """Drop all sequences, and give unused memory back. What `state` has returned stays."""

    def state(self, sequence: int) -> State:
        """Return the keys and values of a sequence, which stay as they are when it is dropped."""

    def restore(self, sequence: int, state: State, length: int) -> None:
        """Begin a sequence with the keys and values of so many tokens."""


class FlatEngine(Generic[State]):
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, context: Context[State], max_batch_size: int, prefix_cache_bytes: int) -> None:
        """Take a model.

        Args:
            context: The model, whose cache holds one sequence more than the batch has rows.
            max_batch_size: The number of rows.
            prefix_cache_bytes: How many bytes the beginnings that prompts share may take.
        """
        self.max_batch_size = max_batch_size
        # The number of the sequence in which a beginning that prompts share is computed.
        self._spare = max_batch_size
        self._context = context
        self.cache_tokens = context.cache_tokens
        self._prefixes: PrefixCache[State] = PrefixCache(prefix_cache_bytes, context.bytes_per_token)
        self.admission = Admission(self._enter, PREFILL_TOKENS)
        self._speculation = Speculation()
        # The rows, in the order in which they began.
        self._rows: list[Sequence] = []
        # The number of each sequence in the cache, and how many tokens that holds of each number.
        self._numbers: dict[Sequence, int] = {}
        self._computed: dict[int, int] = {}

    @property
    def prefixes(self) -> PrefixCache[State]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

    def reset(self) -> None:
        """Forget every sequence."""
        self.admission.clear()
        self._prefixes.reset()
        self._rows, self._numbers, self._computed = [], {}, {}
        self._context.empty()

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Run pieces of the prompts of new sequences, or decode one token for every row."""
        chosen = self.admission.step(arriving, self._rows)
        if chosen is not None:
            return chosen
        if self._context.is_exact and may_speculate(self._rows, self.admission.is_busy):
            return self._speculation.advance(self._rows[0], self._advance, self._check)
        return self._advance()

    def remove(self, sequences: list[Sequence]) -> None:
        """Drop sequences, whether their prompts are complete or not."""
        for sequence in sequences:
            if (number := self._numbers.pop(sequence, None)) is not None:
                self._computed.pop(number)
                self._context.forget(number)
        self._rows = [row for row in self._rows if row in self._numbers]
        if not self._computed:
            self._context.empty()

    def _enter(self, sequences: list[Sequence]) -> Passes[None]:
        """Run the prompts of new sequences, the shortest first; several share a pass."""
        arrivals = yield from look_up(sequences, self._prefixes, self._extend)
        waiting = sorted(
            (arrival for arrival in arrivals if not arrival.sequence.is_over), key=lambda arrival: arrival.missing
        )
        for arrival in waiting:
            self._begin(arrival)
        prompts = [arrival.sequence for arrival in waiting]
        # They refer to beginnings that the cache may have dropped in the meantime.
        del arrivals, waiting
        while prompts := [sequence for sequence in prompts if sequence in self._numbers]:
            yield self._pass(prompts, self.admission.piece)
            prompts = [sequence for sequence in prompts if sequence not in self._rows]

    def _begin(self, arrival: Arrival[State]) -> None:
        """Give a sequence a number, and the beginning of its prompt if that is known."""
        sequence, prefix = arrival.sequence, arrival.prefix
        number = next(number for number in range(self.max_batch_size) if number not in self._computed)
        self._numbers[sequence] = number
        self._load(number, prefix)
        sequence.reused = max(0, self._computed[number] - arrival.computed)

    def _load(self, number: int, prefix: Prefix[State] | None) -> None:
        """Begin a sequence of the cache with a beginning that was computed, or with nothing."""
        length = len(prefix.tokens) if prefix else 0
        if prefix:
            self._context.restore(number, prefix.state, length)
        self._computed[number] = length

    def _pass(self, prompts: list[Sequence], room: int) -> Pass:
        """Compute tokens of the first prompts; return their number, and the first tokens of those that are complete."""
        tokens: list[Token] = []
        parts: list[tuple[Sequence, int]] = []
        for sequence in prompts:
            part = self._next_tokens(sequence, room - len(tokens))
            tokens += part
            if part:
                parts.append((sequence, sum(token.is_wanted for token in part)))
        logits = self._run(tokens)
        complete: list[tuple[Sequence, FloatArray]] = []
        for sequence, wanted in parts:
            mine, logits = logits[:wanted], logits[wanted:]
            if sequence.settings.scores_prompt and wanted:
                sequence.score_prompt(mine)
            if self._computed[self._numbers[sequence]] == len(sequence.prompt):
                complete.append((sequence, mine[-1]))
        self._rows += [sequence for sequence, _ in complete]
        return Pass(len(tokens), tuple(_choose(complete)))

    def _next_tokens(self, sequence: Sequence, room: int) -> list[Token]:
        """Return the next tokens of a prompt, as many as there is room for."""
        number = self._numbers[sequence]
        start, last = self._computed[number], len(sequence.prompt) - 1
        # From the token before the first one that is scored.
        scored = sequence.settings.scored_from - 1 if sequence.settings.scores_prompt else last
        return [
            Token(sequence.prompt[place], place, number, is_wanted=place >= scored)
            for place in range(start, min(start + room, last + 1))
        ]

    def _extend(self, known: Prefix[State] | None, tokens: IntArray) -> Passes[Prefix[State]]:
        """Compute the keys and values of a beginning, after those that are known."""
        self._load(self._spare, known)
        start, computed = len(known.tokens) if known else 0, 0
        try:
            for first, end in self.admission.columns(len(tokens) - start, 1):
                piece = range(start + first, start + end)
                self._run([Token(int(tokens[place]), place, self._spare) for place in piece])
                computed = end - first
                if start + end < len(tokens):
                    yield Pass(computed)
            state = self._context.state(self._spare)
        finally:
            self._computed.pop(self._spare, None)
            self._context.forget(self._spare)
        yield Pass(computed)
        return Prefix(tokens, state)

    def _advance(self) -> list[tuple[Sequence, int]]:
        """Decode the next token of every row."""
        tokens = [Token(row.tokens[-1], row.length - 1, self._numbers[row], is_wanted=True) for row in self._rows]
        return _choose(list(zip(self._rows, self._run(tokens), strict=True)))

    def _check(self, draft: list[int]) -> list[int]:
        """Return the next tokens of the only row: those of a draft that are right, and one more."""
        (row,) = self._rows
        number, start = self._numbers[row], row.length - 1
        tokens = [
            Token(token, start + place, number, is_wanted=True) for place, token in enumerate([row.tokens[-1], *draft])
        ]
        accepted = accepted_tokens(draft, self._run(tokens).argmax(axis=-1).tolist())
        # The next pass writes over the wrong ones.
        self._computed[number] = start + len(accepted)
        return accepted

    def _run(self, tokens: list[Token]) -> FloatArray:
        """Compute tokens, and count them to their sequences."""
        logits = self._context.run(tokens)
        for token in tokens:
            self._computed[token.sequence] = token.position + 1
        return logits


def _choose(rows: list[tuple[Sequence, FloatArray]]) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from its logits [vocabulary]."""
    best = [int(logits.argmax()) for _, logits in rows]
    return choose_tokens([sequence for sequence, _ in rows], best, lambda row: rows[row][1])


def compute_threads() -> int:
    """Return the number of threads: what is asked for or allowed, or else one for each core that computes."""
    return thread_limit() or min(cores(), psutil.cpu_count(logical=False) or cores())
