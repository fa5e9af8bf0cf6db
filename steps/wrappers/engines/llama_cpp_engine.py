"""Continuous batching of a GGUF file in llama.cpp.

Each row is a sequence of llama.cpp's cache. New prompts are computed in passes without padding, each with tokens of as
many prompts as it has room for.
"""

from pathlib import Path

from .admission import Admission, Pass, Passes
from .batching import Arrival, choose_tokens, look_up
from .llama_context import LlamaContext, Memory, Token
from .memory import cache_tokens
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sampling import FloatArray
from .sequence import Sequence

# Tokens of one pass. llama.cpp's kernels gain nothing from more.
PREFILL_TOKENS = 512


class LlamaCppEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, max_batch_size: int, prefix_cache_mb: int = 512) -> None:
        """Load a model.

        Args:
            directory: A folder with model.gguf.
            max_batch_size: The number of rows, at most 255.
            prefix_cache_mb: How many megabytes the beginnings that prompts share may take.
        """
        self.max_batch_size = max_batch_size
        # One more, in which a beginning that prompts share is computed.
        self._spare = max_batch_size
        self._llama = LlamaContext(
            str(Path(directory) / "model.gguf"), max_batch_size + 1, max(PREFILL_TOKENS, max_batch_size)
        )
        self.cache_tokens = cache_tokens(self._llama.bytes_per_token)
        self._prefixes: PrefixCache[Memory] = PrefixCache(prefix_cache_mb * 2**20, self._llama.bytes_per_token)
        self.admission = Admission(self._enter, PREFILL_TOKENS)
        # The rows, in the order in which they began.
        self._rows: list[Sequence] = []
        # The number of each sequence in the cache, and how many tokens that holds of each number.
        self._numbers: dict[Sequence, int] = {}
        self._computed: dict[int, int] = {}

    @property
    def prefixes(self) -> PrefixCache[Memory]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

    def reset(self) -> None:
        """Forget every sequence."""
        self.admission.clear()
        self._prefixes.reset()
        self._rows, self._numbers, self._computed = [], {}, {}
        self._llama.empty()

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Run pieces of the prompts of new sequences, or decode one token for every row."""
        chosen = self.admission.step(arriving, self._rows)
        return self._advance() if chosen is None else chosen

    def remove(self, sequences: list[Sequence]) -> None:
        """Drop sequences, whether their prompts are complete or not."""
        for sequence in sequences:
            if (number := self._numbers.pop(sequence, None)) is not None:
                self._computed.pop(number)
                self._llama.forget(number)
        self._rows = [row for row in self._rows if row in self._numbers]
        if not self._computed:
            self._llama.empty()

    def _enter(self, sequences: list[Sequence]) -> Passes[None]:
        """Run the prompts of new sequences, the shortest first; several share a pass."""
        arrivals = yield from look_up(sequences, self._prefixes, self._extend)
        waiting = sorted(
            (arrival for arrival in arrivals if not arrival.sequence.is_over), key=lambda arrival: arrival.missing
        )
        for arrival in waiting:
            self._begin(arrival)
        while waiting := [arrival for arrival in waiting if arrival.sequence in self._numbers]:
            yield self._pass(waiting, self.admission.piece)
            waiting = [arrival for arrival in waiting if arrival.sequence not in self._rows]

    def _begin(self, arrival: Arrival[Memory]) -> None:
        """Give a sequence a number, and the beginning of its prompt if that is known."""
        sequence, prefix = arrival.sequence, arrival.prefix
        number = next(number for number in range(self.max_batch_size) if number not in self._computed)
        self._numbers[sequence] = number
        self._load(number, prefix)
        sequence.reused = max(0, self._computed[number] - arrival.computed)

    def _load(self, number: int, prefix: Prefix[Memory] | None) -> None:
        """Begin a sequence of the cache with a beginning that was computed, or with nothing."""
        length = len(prefix.tokens) if prefix else 0
        others = tuple(self._computed)
        self._reserve(length)
        if prefix:
            self._llama.restore(number, prefix.state, others)
        self._computed[number] = length

    def _pass(self, waiting: list[Arrival[Memory]], room: int) -> Pass:
        """Compute tokens of the first prompts; return their number, and the first tokens of those that are complete."""
        tokens: list[Token] = []
        parts: list[tuple[Sequence, int]] = []
        for sequence in (arrival.sequence for arrival in waiting):
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

    def _extend(self, known: Prefix[Memory] | None, tokens: IntArray) -> Passes[Prefix[Memory]]:
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
            state = self._llama.state(self._spare)
        finally:
            self._computed.pop(self._spare, None)
            self._llama.forget(self._spare)
        yield Pass(computed)
        return Prefix(tokens, state)

    def _advance(self) -> list[tuple[Sequence, int]]:
        """Decode the next token of every row."""
        tokens = [Token(row.tokens[-1], row.length - 1, self._numbers[row], is_wanted=True) for row in self._rows]
        return _choose(list(zip(self._rows, self._run(tokens), strict=True)))

    def _run(self, tokens: list[Token]) -> FloatArray:
        """Compute tokens, and count them to their sequences."""
        self._reserve(len(tokens))
        logits = self._llama.run(tokens)
        for token in tokens:
            self._computed[token.sequence] = token.position + 1
        return logits

    def _reserve(self, tokens: int) -> None:
        """Make room for more tokens."""
        self._llama.reserve(sum(self._computed.values()) + tokens, tuple(self._computed))


def _choose(rows: list[tuple[Sequence, FloatArray]]) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from its logits [vocabulary]."""
    best = [int(logits.argmax()) for _, logits in rows]
    return choose_tokens([sequence for sequence, _ in rows], best, lambda row: rows[row][1])
