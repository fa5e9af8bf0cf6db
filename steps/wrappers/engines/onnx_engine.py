"""Continuous batching of a model in ONNX Runtime GenAI's layout, on ONNX Runtime's CPU provider.

GenAI's own engine batches continuously on a GPU only: on a CPU it starts a batch when the last one has finished. Here
row r of the key-value cache [layers, 2, rows, heads, capacity, head size] belongs to sequence r, from column 0 on, and
the attention mask [rows, width] marks the length of each row. The graph reads and writes the cache in place. New rows
are prefilled together, padded on the right. The last row replaces a finished one, so the rows in use stay adjacent.
"""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

# It would start a thread that sends events, for which a forked process would wait at its end.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime

from .batching import PADDING, Arrival, choose_tokens, look_up, prefill_groups
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sampling import FloatArray
from .sequence import Sequence
from .threads import thread_limit

# Tokens of one prefill, padding included. Unless its head is pruned, the graph returns logits for each: 4 bytes x
# vocabulary.
PREFILL_TOKENS = 512
CAPACITY_STEP = 64
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
        self._session = onnxruntime.InferenceSession(
            Path(directory) / decoder["filename"],
            _session_options(decoder.get("session_options", {})),
            providers=["CPUExecutionProvider"],
        )
        self._inputs, self._outputs = decoder["inputs"], decoder["outputs"]
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._has_positions = self._inputs.get("position_ids") in inputs
        self._vocabulary, self._context_length = model["vocab_size"], model["context_length"]
        self._layers = decoder["num_hidden_layers"]
        self._row_shape = decoder["num_key_value_heads"], decoder["head_size"]
        # A graph with a pruned head returns the logits of the last column only: [rows, 1, vocabulary].
        logits = next(entry for entry in self._session.get_outputs() if entry.name == self._outputs["logits"])
        self._is_pruned = logits.shape[1] == 1
        self._float = FLOATS[inputs[self._inputs["past_key_names"] % 0].type]
        bytes_per_token = 2 * self._layers * int(np.prod(self._row_shape)) * np.dtype(self._float).itemsize
        self._prefixes: PrefixCache[State] = PrefixCache(prefix_cache_mb * 2**20, bytes_per_token)
        self.reset()

    @property
    def prefixes(self) -> PrefixCache[State]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

    def reset(self) -> None:
        """Start with an empty batch."""
        self._rows: list[Sequence] = []
        self._cache = self._empty_cache(0, 0)

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Prefill the arriving sequences and join them; without any, decode one token for every row."""
        if not arriving:
            return _choose(self._rows, self._decode())
        # One row more than needed: a beginning is computed there.
        self._reserve(len(self._rows) + len(arriving) + 1, max(len(sequence.prompt) for sequence in arriving))
        arrivals = look_up(arriving, self._prefixes, self._extend)
        # The graph goes on from a beginning in one row only.
        groups = [[arrival] for arrival in arrivals if arrival.prefix]
        unknown = [arrival for arrival in arrivals if not arrival.prefix]
        # With a pruned head, the last column must be the last token of every row.
        groups += prefill_groups(unknown, PREFILL_TOKENS, 0 if self._is_pruned else PADDING)
        tokens = []
        for group in groups:
            tokens += _choose([arrival.sequence for arrival in group], self._prefill(group))
        return tokens

    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows; the last row of the batch replaces each of them."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row] in sequences:
                last = self._rows.pop()
                if row < len(self._rows):
                    self._rows[row] = last
                    self._cache[:, :, row, :, : last.length] = self._cache[:, :, len(self._rows), :, : last.length]
        if not self._rows:
            self.reset()

    def _prefill(self, group: list[Arrival[State]]) -> FloatArray:
        """Append new rows and run their prompts; return logits [rows, vocabulary]. A row with a prefix is alone."""
        start, prompts = len(self._rows), [arrival.sequence.prompt for arrival in group]
        self._rows += [arrival.sequence for arrival in group]
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(group), lengths.max()), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        first = group[0].sequence
        first.reused = self._load(group[0].prefix, start)
        return self._run(ids, lengths, first.reused, start, first)

    def _run(
        self, ids: IntArray, lengths: IntArray, first: int, start: int, scored: Sequence | None = None
    ) -> FloatArray:
        """Run prompts [rows, width] from column `first` on, in pieces; return their last logits [rows, vocabulary]."""
        # Only one row can be longer than one piece, begin after column 0, or be scored.
        scored = scored if scored and scored.settings.scores_prompt else None
        for column, end in self._pieces(first, ids.shape[1], scored):
            piece = ids[:, column:end]
            seen = np.minimum(lengths, end)
            logits = self.forward(piece, seen, column, start)
            if scored and end >= scored.settings.scored_from:
                # The last rows of the piece, from the token before the first one that is scored.
                rows = min(len(logits[0]), end - scored.settings.scored_from + 1)
                scored.score_prompt(logits[0][-rows:].astype(np.float32))
        last: FloatArray = logits[np.arange(len(ids)), 0 if self._is_pruned else seen - column - 1]
        return last

    def _pieces(self, first: int, width: int, scored: Sequence | None) -> list[tuple[int, int]]:
        """Return the first column of each piece and the one after its last.

        With a pruned head, every token before one that is scored has to be the last one of a piece.
        """
        whole = min(scored.settings.scored_from, width) if scored and self._is_pruned else width
        starts = [*range(first, whole, PREFILL_TOKENS), *range(max(first, whole), width)]
        return list(pairwise([*starts, width]))

    def _load(self, prefix: Prefix[State] | None, row: int) -> int:
        """Copy a beginning into a row of the cache; return its length."""
        if prefix is None:
            return 0
        self._cache[:, :, row, :, : len(prefix.tokens)] = prefix.state
        return len(prefix.tokens)

    def _extend(self, known: Prefix[State] | None, tokens: IntArray) -> Prefix[State]:
        """Compute the keys and values of a beginning, after those that are known, in the row after the last one."""
        row = len(self._rows)
        self._run(tokens[None], np.array([len(tokens)]), self._load(known, row), row)
        return Prefix(tokens, self._cache[:, :, row, :, : len(tokens)].copy())

    def _decode(self) -> FloatArray:
        """Run the last token of every row; return logits [rows, vocabulary]."""
        lengths = np.array([sequence.length for sequence in self._rows])
        self._reserve(len(self._rows), lengths.max())
        ids = np.array([[sequence.tokens[-1]] for sequence in self._rows], dtype=np.int64)
        return self.forward(ids, lengths, lengths[:, None] - 1, 0)[:, 0]

    def forward(self, ids: IntArray, lengths: IntArray, offset: IntArray | int, start: int) -> FloatArray:
        """Run tokens through the graph and return their logits [rows, width, vocabulary].

        If the graph's head is pruned, the logits are those of the last token: [rows, 1, vocabulary].

        Args:
            ids: Tokens [rows, width].
            lengths: The length of each row [rows] after these tokens.
            offset: The position of the first column: one for all rows, or [rows, 1].
            start: The first row of the batch that the tokens belong to; the others follow it.
        """
        rows, width = ids.shape
        logits = np.empty((rows, 1 if self._is_pruned else width, self._vocabulary), dtype=self._float)
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._inputs["input_ids"], np.ascontiguousarray(ids))
        # When decoding, each row has one token and an offset of its own, so the longest row sets the width.
        mask = np.arange(lengths.max() if width == 1 else offset + width) < lengths[:, None]
        binding.bind_cpu_input(self._inputs["attention_mask"], mask.astype(np.int64))
        if self._has_positions:
            positions = np.broadcast_to(offset + np.arange(width), ids.shape)
            binding.bind_cpu_input(self._inputs["position_ids"], np.ascontiguousarray(positions, dtype=np.int64))
        for layer in range(self._layers):
            for kind, name in enumerate(("key", "value")):
                memory = self._cache[layer, kind, start : start + rows]
                place = "cpu", 0, self._float, memory.shape, memory.ctypes.data
                binding.bind_input(self._inputs[f"past_{name}_names"] % layer, *place)
                binding.bind_output(self._outputs[f"present_{name}_names"] % layer, *place)
        binding.bind_output(self._outputs["logits"], "cpu", 0, self._float, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits

    def _reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens. When the capacity grows, it at least doubles."""
        old_rows, old_capacity = self._cache.shape[2], self._cache.shape[4]
        if rows <= old_rows and length <= old_capacity:
            return
        capacity = old_capacity
        if length > old_capacity:
            rounded = -(-max(length + CAPACITY_STEP, 2 * old_capacity) // CAPACITY_STEP) * CAPACITY_STEP
            capacity = min(rounded, self._context_length)
        used, cache = len(self._rows), self._empty_cache(max(rows, old_rows), capacity)
        cache[:, :, :used, :, :old_capacity] = self._cache[:, :, :used]
        self._cache = cache

    def _empty_cache(self, rows: int, capacity: int) -> FloatArray:
        heads, size = self._row_shape
        return np.empty((self._layers, 2, rows, heads, capacity, size), dtype=self._float)


def _session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Return session options with as many threads as the model's configuration asks for, or as there may be."""
    options = onnxruntime.SessionOptions()
    # Only what is fatal: everything else that it prints, it raises too.
    options.log_severity_level = 4
    options.intra_op_num_threads = config.get("intra_op_num_threads", 0) or thread_limit() or 0
    # Threads that spin between two tokens would slow down the threads that serve requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _choose(sequences: list[Sequence], logits: FloatArray) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from logits [rows, vocabulary]."""
    return choose_tokens(sequences, logits.argmax(axis=-1).tolist(), lambda row: logits[row].astype(np.float32))
