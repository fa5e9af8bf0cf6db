"""Continuous batching of a model in ONNX Runtime GenAI's layout, on ONNX Runtime's CPU provider.

GenAI's own engine batches continuously on a GPU only: on a CPU it starts a batch when the last one has finished. Here
row r of the key-value cache [layers, 2, rows, heads, capacity, head size] belongs to sequence r, from column 0 on, and
the attention mask [rows, width] marks the length of each row. The graph reads and writes the cache in place. New rows
are prefilled together, padded on the right; those that need several passes, in a cache of their own until the last one.
The last row replaces a finished one, so the rows in use stay adjacent.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from .admission import Admission, Pass, Passes
from .batching import PADDING, Arrival, choose_tokens, groups_in_turn, look_up
from .memory import cache_tokens
from .onnx_cache import CacheForm
from .onnx_session import IOBinding, has_few_bits, open_session
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sampling import FloatArray
from .sequence import Sequence
from .speculation import Speculation, accepted_tokens, may_speculate

# Tokens of one prefill, padding included. A graph whose head is not pruned returns the logits of each.
PREFILL_TOKENS = 512
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

# Keys and values [layers, 2, heads, length, head size].
State = FloatArray


class OnnxEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, max_batch_size: int, prefix_cache_mb: int = 512) -> None:
        """Load a model.

        Args:
            directory: A folder of ONNX Runtime GenAI's layout.
            max_batch_size: The number of rows.
            prefix_cache_mb: How many megabytes the beginnings that prompts share may take.
        """
        self.max_batch_size = max_batch_size
        model = json.loads((Path(directory) / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        graph = Path(directory) / decoder["filename"]
        self._session = open_session(graph, decoder.get("session_options", {}))
        self._inputs, self._outputs = decoder["inputs"], decoder["outputs"]
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._has_positions = self._inputs.get("position_ids") in inputs
        self._vocabulary = model["vocab_size"]
        # A graph with a pruned head returns the logits of the last column only: [rows, 1, vocabulary].
        logits = next(entry for entry in self._session.get_outputs() if entry.name == self._outputs["logits"])
        self._is_pruned = logits.shape[1] == 1
        self._float = FLOATS[inputs[self._inputs["past_key_names"] % 0].type]
        self._is_exact = self._float == np.float32 and not self._is_pruned and not has_few_bits(graph)
        shape = decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]
        self._form = CacheForm(*shape, np.dtype(self._float), model["context_length"])
        self.cache_tokens = cache_tokens(self._form.bytes_per_token)
        self._prefixes: PrefixCache[State] = PrefixCache(prefix_cache_mb * 2**20, self._form.bytes_per_token)
        self.admission = Admission(self._enter, PREFILL_TOKENS)
        self._speculation = Speculation()
        self._binding, self._place = self._session.io_binding(), (0, (0,), 0)
        self._empty()

    @property
    def prefixes(self) -> PrefixCache[State]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

    def reset(self) -> None:
        """Forget every sequence."""
        self.admission.clear()
        self._prefixes.reset()
        self._empty()

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Run pieces of the prompts of new sequences, or decode one token for every row."""
        chosen = self.admission.step(arriving, self._rows)
        if chosen is not None:
            return chosen
        if self._may_speculate():
            return self._speculation.advance(self._rows[0], self._advance, self._check)
        return self._advance()

    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows; the last row of the batch replaces each of them."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row] in sequences:
                last = self._rows.pop()
                if row < len(self._rows):
                    self._rows[row] = last
                    self._cache[:, :, row, :, : last.length] = self._cache[:, :, len(self._rows), :, : last.length]
        if not self._rows:
            self._empty()

    def _empty(self) -> None:
        """Start with an empty batch."""
        self._rows: list[Sequence] = []
        self._cache = self._form.empty(0, 0)

    def _enter(self, sequences: list[Sequence]) -> Passes[None]:
        """Run the prompts of new sequences in groups."""
        arrivals = yield from look_up(sequences, self._prefixes, self._extend)
        # Room to grow too: it takes memory only when it is written, and later all rows would have to be copied.
        room = max(min(2 * len(sequence.prompt), sequence.longest) for sequence in sequences)
        before = self._cache
        self._reserve(len(self._rows) + len(sequences), min(room, self._form.context_length))
        if self._cache is not before and self.admission.divides(room):
            yield Pass(0, copied=room)
        # The graph goes on from a beginning in one row only.
        for arrival in [arrival for arrival in arrivals if arrival.prefix]:
            yield from self._prefill([arrival])
        unknown = [arrival for arrival in arrivals if not arrival.prefix]
        # With a pruned head, the last column must be the last token of every row.
        for group in groups_in_turn(unknown, self.admission, 0 if self._is_pruned else PADDING):
            yield from self._prefill(group)

    def _prefill(self, group: list[Arrival[State]]) -> Passes[None]:
        """Run the prompts of new rows, choose their first tokens and join them. A row with a prefix is alone."""
        sequences, prompts = [arrival.sequence for arrival in group], [arrival.sequence.prompt for arrival in group]
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(group), lengths.max()), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        total, missing = int(lengths.sum()), len(group) * max(arrival.missing for arrival in group)
        if is_apart := missing > self.admission.piece or self.admission.divides(group[0].known):
            cache = self._form.empty(len(group), lengths.max())
        else:
            # One pass, so nothing happens to the batch in between.
            self._reserve(len(self._rows) + len(group), lengths.max())
            cache = self._cache[:, :, len(self._rows) : len(self._rows) + len(group)]
        start = yield from self._load(group[0].prefix, cache)
        sequences[0].reused = start - group[0].computed if start else 0
        logits, tokens = yield from self._run(ids, lengths, start, cache, sequences[0])
        if is_apart and self.admission.divides(total):
            yield Pass(tokens, ends_turn=True)
            tokens = 0
        chosen = _choose(sequences, logits)
        self._join(sequences, cache)
        # Those that were cancelled in the meantime, and are removed already.
        self.remove([sequence for sequence in sequences if sequence.is_over])
        yield Pass(tokens, tuple(chosen), copied=total if is_apart else 0)

    def _run(
        self, ids: IntArray, lengths: IntArray, first: int, cache: FloatArray, scored: Sequence | None = None
    ) -> Passes[tuple[FloatArray, int]]:
        """Run prompts [rows, width] from column `first` on, in passes.

        The result is their last logits [rows, vocabulary], and the tokens of the last pass.
        """
        # Only one row can be longer than one piece, begin after column 0, or be scored.
        scored = scored if scored and scored.settings.scores_prompt else None
        tokens = 0
        count = ids.shape[1] - first
        for start, end in self.admission.columns(count, len(ids)):
            for column, stop in self._pieces(first + start, first + end, scored):
                seen = np.minimum(lengths, stop)
                logits = self.forward(ids[:, column:stop], seen, column, cache)
                if scored and stop >= scored.settings.scored_from:
                    # The last rows of the piece, from the token before the first one that is scored.
                    rows = min(len(logits[0]), stop - scored.settings.scored_from + 1)
                    scored.score_prompt(logits[0][-rows:].astype(np.float32))
            tokens = len(ids) * (end - start)
            if end < count:
                yield Pass(tokens)
        last: FloatArray = logits[np.arange(len(ids)), 0 if self._is_pruned else seen - column - 1]
        return last, tokens

    def _pieces(self, first: int, end: int, scored: Sequence | None) -> Iterator[tuple[int, int]]:
        """Return the first column of each piece of a pass, and the one after its last.

        With a pruned head, every token before one that is scored has to be the last one of a piece.
        """
        whole = min(max(scored.settings.scored_from, first), end) if scored and self._is_pruned else end
        return pairwise([*([first] if first < whole else []), *range(whole, end), end])

    def _extend(self, known: Prefix[State] | None, tokens: IntArray) -> Passes[Prefix[State]]:
        """Compute the keys and values of a beginning, after those that are known."""
        cache = self._form.empty(1, len(tokens))
        start = yield from self._load(known, cache)
        _, computed = yield from self._run(tokens[None], np.array([len(tokens)]), start, cache)
        yield Pass(computed)
        return Prefix(tokens, cache[:, :, 0])

    def _load(self, prefix: Prefix[State] | None, cache: FloatArray) -> Passes[int]:
        """Copy a beginning into the first row of a cache; the result is its length."""
        if prefix is None:
            return 0
        length = len(prefix.tokens)
        yield from self.admission.copying(length, lambda: np.copyto(cache[:, :, 0, :, :length], prefix.state))
        return length

    def _join(self, sequences: list[Sequence], cache: FloatArray) -> None:
        """Append rows to the batch; their cache is a part of the batch's, or is copied there."""
        start = len(self._rows)
        if not np.may_share_memory(cache, self._cache):
            self._reserve(start + len(sequences), cache.shape[4])
            for row, sequence in enumerate(sequences):
                length = len(sequence.prompt)
                self._cache[:, :, start + row, :, :length] = cache[:, :, row, :, :length]
        self._rows += sequences

    def _may_speculate(self) -> bool:
        """Return True if one awaited row runs, and the graph says exactly what follows each token of a draft.

        A pruned head says it of the last token only.
        """
        return self._is_exact and may_speculate(self._rows, self.admission.is_busy)

    def _advance(self) -> list[tuple[Sequence, int]]:
        """Decode the next token of every row."""
        lengths = np.array([sequence.length for sequence in self._rows])
        self._reserve(len(self._rows), lengths.max())
        ids = np.array([[sequence.tokens[-1]] for sequence in self._rows], dtype=np.int64)
        return _choose(self._rows, self.forward(ids, lengths, lengths[:, None] - 1, self._cache)[:, 0])

    def _check(self, draft: list[int]) -> list[int]:
        """Return the next tokens of the only row: those of a draft that are right, and one more."""
        (sequence,) = self._rows
        length = sequence.length + len(draft)
        self._reserve(1, length)
        ids = np.array([[sequence.tokens[-1], *draft]], dtype=np.int64)
        logits = self.forward(ids, np.array([length]), sequence.length - 1, self._cache)
        # The next pass writes over what the wrong ones left in the cache.
        return accepted_tokens(draft, logits[0].argmax(axis=-1).tolist())

    def forward(self, ids: IntArray, lengths: IntArray, offset: IntArray | int, cache: FloatArray) -> FloatArray:
        """Run tokens through the graph and return their logits [rows, width, vocabulary].

        If the graph's head is pruned, the logits are those of the last token: [rows, 1, vocabulary].

        Args:
            ids: Tokens [rows, width].
            lengths: The length of each row [rows] after these tokens.
            offset: The position of the first column: one for all rows, or [rows, 1].
            cache: Keys and values [layers, 2, rows or more, heads, capacity, head size], read and written in place.
        """
        rows, width = ids.shape
        logits = np.empty((rows, 1 if self._is_pruned else width, self._vocabulary), dtype=self._float)
        binding = self._bound(cache, rows)
        binding.bind_cpu_input(self._inputs["input_ids"], np.ascontiguousarray(ids))
        # When decoding, each row has one token and an offset of its own, so the longest row sets the width.
        mask = np.arange(lengths.max() if width == 1 else offset + width) < lengths[:, None]
        binding.bind_cpu_input(self._inputs["attention_mask"], mask.astype(np.int64))
        if self._has_positions:
            positions = np.broadcast_to(offset + np.arange(width), ids.shape)
            binding.bind_cpu_input(self._inputs["position_ids"], np.ascontiguousarray(positions, dtype=np.int64))
        binding.bind_output(self._outputs["logits"], "cpu", 0, self._float, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits

    def _bound(self, cache: FloatArray, rows: int) -> IOBinding:
        """Return a binding of the first rows of a cache, to which the rest is bound for each pass.

        It is kept from token to token: a new one binds four tensors of each layer.
        """
        place = cache.ctypes.data, cache.shape, rows
        if self._place != place:
            self._binding, self._place = self._session.io_binding(), place
            for layer in range(self._form.layers):
                for kind, name in enumerate(("key", "value")):
                    memory = cache[layer, kind, :rows]
                    memory_place = "cpu", 0, self._float, memory.shape, memory.ctypes.data
                    self._binding.bind_input(self._inputs[f"past_{name}_names"] % layer, *memory_place)
                    self._binding.bind_output(self._outputs[f"present_{name}_names"] % layer, *memory_place)
        return self._binding

    def _reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens."""
        lengths = [sequence.length for sequence in self._rows]
        self._cache = self._form.grown(self._cache, lengths, rows, length, self.max_batch_size)


def _choose(sequences: list[Sequence], logits: FloatArray) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from logits [rows, vocabulary]."""
    return choose_tokens(sequences, logits.argmax(axis=-1).tolist(), lambda row: logits[row].astype(np.float32))
