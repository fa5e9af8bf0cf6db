"""A GGUF file in llama.cpp: tokens of many sequences in, logits out. Its cache grows with what it holds.

llama.cpp takes the memory of a cache at once, and cannot enlarge it: a larger one is made and filled from the old one.
All sequences share its cells, so it holds as many tokens as they have together.
"""

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from .flat_engine import Token, compute_threads
from .memory import cache_tokens
from .sampling import FloatArray

# Cells of the first cache, and of what a cache grows by: llama.cpp rounds to that.
FIRST_CELLS, CELL_STEP = 1024, 256
BYTES_PER_NUMBER = 2  # keys and values are stored as 16-bit floats

Memory = np.ndarray[Any, np.dtype[np.uint8]]


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _say_nothing(level: int, text: bytes, user_data: Any) -> None:
    """Print nothing: what fails raises."""


class LlamaContext:
    """A model and its cache, as `flat_engine.Context` describes them."""

    # Keys and values are stored in 16 bits.
    is_exact = False

    def __init__(self, file: str, sequences: int, longest_pass: int) -> None:
        """Load a model.

        Args:
            file: A GGUF file.
            sequences: How many sequences the cache holds at most.
            longest_pass: How many tokens are computed at once at most.

        Raises:
            ValueError: llama.cpp cannot read the file.
        """
        llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model: Any = llama_cpp.llama_model_load_from_file(file.encode(), settings)
        if not self._model:
            raise ValueError(f"llama.cpp cannot read {file}")
        self._sequences, self._longest_pass = sequences, longest_pass
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self._batch = _Batch(longest_pass)
        self._cells, self._context = FIRST_CELLS, self._new_context(FIRST_CELLS)
        self.bytes_per_token = self._bytes_per_token()
        self.cache_tokens = cache_tokens(self.bytes_per_token)
        # How many tokens the cache holds of each sequence.
        self._lengths: dict[int, int] = {}

    def __del__(self) -> None:
        """Free the memory."""
        if getattr(self, "_context", None):
            llama_cpp.llama_free(self._context)
        if getattr(self, "_model", None):
            llama_cpp.llama_model_free(self._model)

    def run(self, tokens: list[Token]) -> FloatArray:
        """Compute tokens, at most as many as a pass may have; return the wanted logits [wanted, vocabulary]."""
        self._reserve(len(tokens))
        self._batch.fill(tokens)
        if code := llama_cpp.llama_decode(self._context, self._batch.entries):
            raise RuntimeError(f"llama_decode returned {code} for {len(tokens)} tokens")
        self._lengths |= {token.sequence: token.position + 1 for token in tokens}
        wanted = [place for place, token in enumerate(tokens) if token.is_wanted]
        logits = np.empty((len(wanted), self.vocabulary), dtype=np.float32)
        for row, place in enumerate(wanted):
            values = llama_cpp.llama_get_logits_ith(self._context, place)
            logits[row] = np.ctypeslib.as_array(values, (self.vocabulary,))
        return logits

    def forget(self, sequence: int) -> None:
        """Drop a sequence."""
        self._lengths.pop(sequence, None)
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), sequence, -1, -1)

    def empty(self) -> None:
        """Drop all sequences, and the memory that the cache took in addition to its first."""
        self._lengths = {}
        if self._cells > FIRST_CELLS:
            self._renew(FIRST_CELLS)
        else:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def state(self, sequence: int) -> Memory:
        """Return a copy of the keys and values of a sequence."""
        size = llama_cpp.llama_state_seq_get_size(self._context, sequence)
        memory: Memory = np.empty(size, dtype=np.uint8)
        if llama_cpp.llama_state_seq_get_data(self._context, _pointer(memory), size, sequence) != size:
            raise RuntimeError(f"llama.cpp did not copy sequence {sequence}")
        return memory

    def restore(self, sequence: int, state: Memory, length: int) -> None:
        """Begin a sequence with the keys and values of so many tokens."""
        self._reserve(length)
        if not self._set_state(sequence, state):
            # There are enough cells, but not side by side.
            self._renew(self._cells)
            if not self._set_state(sequence, state):
                raise RuntimeError(f"llama.cpp did not restore sequence {sequence}")
        self._lengths[sequence] = length

    def _bytes_per_token(self) -> int:
        """Return the bytes of the keys and values of one token."""
        heads = llama_cpp.llama_model_n_head_kv(self._model)
        size = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        return int(2 * llama_cpp.llama_model_n_layer(self._model) * heads * size * BYTES_PER_NUMBER)

    def _set_state(self, sequence: int, state: Memory) -> bool:
        return bool(llama_cpp.llama_state_seq_set_data(self._context, _pointer(state), state.nbytes, sequence))

    def _reserve(self, tokens: int) -> None:
        """Make room for more tokens. What grows at least doubles."""
        needed = sum(self._lengths.values()) + tokens
        if needed > self._cells:
            self._renew(max(needed, 2 * self._cells))

    def _renew(self, cells: int) -> None:
        """Take another cache with so many cells, and fill it with what the old one holds."""
        cells = -(-cells // CELL_STEP) * CELL_STEP
        states = {sequence: self.state(sequence) for sequence in self._lengths}
        # The old one first, so that both are never there together.
        llama_cpp.llama_free(self._context)
        self._context, self._cells = None, cells
        self._context = self._new_context(cells)
        for sequence, state in states.items():
            if not self._set_state(sequence, state):
                raise RuntimeError(f"llama.cpp did not restore sequence {sequence}")

    def _new_context(self, cells: int) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = cells, self._sequences, True
        settings.n_batch = settings.n_ubatch = self._longest_pass
        settings.n_threads = settings.n_threads_batch = compute_threads()
        settings.no_perf = True
        context = llama_cpp.llama_init_from_model(self._model, settings)
        if not context:
            raise MemoryError(f"llama.cpp has no memory for a cache of {cells} tokens")
        return context


class _Batch:
    """What llama_decode takes, as arrays that are made once."""

    def __init__(self, length: int) -> None:
        self._ids, self._positions = (np.zeros(length, dtype=np.int32) for _ in range(2))
        self._counts, self._sequences = np.ones(length, dtype=np.int32), np.zeros(length, dtype=np.int32)
        self._wanted = np.zeros(length, dtype=np.int8)
        number = ctypes.POINTER(ctypes.c_int32)
        step = self._sequences.itemsize
        places = [ctypes.cast(self._sequences.ctypes.data + step * place, number) for place in range(length)]
        self._places = (number * length)(*places)
        self.entries = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._ids.ctypes.data_as(number),
            embd=None,
            pos=self._positions.ctypes.data_as(number),
            n_seq_id=self._counts.ctypes.data_as(number),
            seq_id=self._places,
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, tokens: list[Token]) -> None:
        """Take tokens in place of those before."""
        count = self.entries.n_tokens = len(tokens)
        self._ids[:count] = [token.id for token in tokens]
        self._positions[:count] = [token.position for token in tokens]
        self._sequences[:count] = [token.sequence for token in tokens]
        self._wanted[:count] = [token.is_wanted for token in tokens]


def _pointer(memory: Memory) -> Any:
    return memory.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
