"""Continuous batching of a model in ONNX Runtime GenAI's layout, on ONNX Runtime's CPU provider.

GenAI's own engine batches continuously on a GPU only; on a CPU it begins a batch when the last one is
over. Here row r of the key-value cache [layers, 2, rows, heads, capacity, head size] belongs to sequence
r, from column 0 on, and the attention mask [rows, width] tells each row's length. The graph reads and writes
the cache in place. New rows are prefilled together, padded on the right; a row that is over is
overwritten by the last one, so that the rows in use lie together.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime

from .sequence import Sequence, choose, groups

# Tokens of one prefill, padding included: a graph gives logits for all of them, 4 bytes x vocabulary each.
PREFILL_TOKENS = 512
CAPACITY_STEP = 64
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, max_batch_size: int):
        self.max_batch_size = max_batch_size
        model = json.loads((Path(directory) / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        self._session = onnxruntime.InferenceSession(
            Path(directory) / decoder["filename"],
            _session_options(decoder.get("session_options", {})),
            providers=["CPUExecutionProvider"],
        )
        self._inputs, self._outputs = decoder["inputs"], decoder["outputs"]
        given = {entry.name: entry for entry in self._session.get_inputs()}
        self._has_positions = self._inputs.get("position_ids") in given
        self._vocabulary, self._context_length = model["vocab_size"], model["context_length"]
        self._layers = decoder["num_hidden_layers"]
        self._row_shape = decoder["num_key_value_heads"], decoder["head_size"]
        self._float = FLOATS[given[self._inputs["past_key_names"] % 0].type]
        self.reset()

    def reset(self) -> None:
        """Start with an empty batch."""
        self._rows: list[Sequence] = []
        self._cache = self._empty_cache(0, 0)

    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Prefill the arriving sequences and join them, or else decode one token for every row."""
        if not arriving:
            return _choose(self._rows, self._decode())
        self._reserve(len(self._rows) + len(arriving), max(len(sequence.prompt) for sequence in arriving))
        return [token for group in groups(arriving, PREFILL_TOKENS) for token in _choose(group, self._prefill(group))]

    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows; the last row of the batch moves into the place of each."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row] in sequences:
                last = self._rows.pop()
                if row < len(self._rows):
                    self._rows[row] = last
                    self._cache[:, :, row, :, : last.length] = self._cache[:, :, len(self._rows), :, : last.length]
        if not self._rows:
            self.reset()

    def _prefill(self, group: list[Sequence]) -> np.ndarray:
        """Run the prompts of some new rows; returns logits [rows, vocabulary]."""
        start, lengths = len(self._rows), np.array([len(sequence.prompt) for sequence in group])
        self._rows += group
        ids = np.zeros((len(group), lengths.max()), dtype=np.int64)
        for row, sequence in enumerate(group):
            ids[row, : lengths[row]] = sequence.prompt
        # Only a group of one row is longer than one piece.
        for first in range(0, ids.shape[1], PREFILL_TOKENS):
            piece = ids[:, first : first + PREFILL_TOKENS]
            seen = np.minimum(lengths, first + piece.shape[1])
            logits = self._forward(piece, seen, first, start)
        return logits[np.arange(len(group)), seen - first - 1]

    def _decode(self) -> np.ndarray:
        """Run the last token of every row; returns logits [rows, vocabulary]."""
        lengths = np.array([sequence.length for sequence in self._rows])
        self._reserve(len(self._rows), lengths.max())
        ids = np.array([[sequence.tokens[-1]] for sequence in self._rows], dtype=np.int64)
        return self._forward(ids, lengths, lengths[:, None] - 1, 0)[:, 0]

    def _forward(self, ids: np.ndarray, lengths: np.ndarray, offset, start: int) -> np.ndarray:
        """Run tokens [rows, width] of the rows from `start` on, of which each then has its length; returns logits.

        `offset` is the position of the first column.
        """
        rows, width = ids.shape
        logits = np.empty((rows, width, self._vocabulary), dtype=self._float)
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._inputs["input_ids"], np.ascontiguousarray(ids))
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
        """Have room for so many rows of such a length; the cache at least doubles when it grows."""
        had_rows, had_capacity = self._cache.shape[2], self._cache.shape[4]
        if rows <= had_rows and length <= had_capacity:
            return
        capacity = had_capacity
        if length > had_capacity:
            rounded = -(-max(length + CAPACITY_STEP, 2 * had_capacity) // CAPACITY_STEP) * CAPACITY_STEP
            capacity = min(rounded, self._context_length)
        used, cache = len(self._rows), self._empty_cache(max(rows, had_rows), capacity)
        cache[:, :, :used, :, :had_capacity] = self._cache[:, :, :used]
        self._cache = cache

    def _empty_cache(self, rows: int, capacity: int) -> np.ndarray:
        heads, size = self._row_shape
        return np.empty((self._layers, 2, rows, heads, capacity, size), dtype=self._float)


def _session_options(config: dict) -> onnxruntime.SessionOptions:
    """Session options; the threads as the model's own configuration asks for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.get("intra_op_num_threads", 0)
    # Threads that spin between two tokens take the processor from the threads that serve requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _choose(sequences: list[Sequence], logits: np.ndarray) -> list[tuple[Sequence, int]]:
    """The next token of every sequence from logits [rows, vocabulary]: greedy, or drawn by its settings."""
    return choose(sequences, logits.argmax(axis=-1).tolist(), lambda row: logits[row].astype(np.float32))
