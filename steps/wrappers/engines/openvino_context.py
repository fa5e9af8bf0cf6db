"""A graph of OpenVINO with paged attention: tokens of many sequences in, logits out.

The cache consists of blocks, and a sequence has a list of them, so nothing is copied when it grows. What sequences
share stands in the same blocks.
"""

import math
import os
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import openvino

from .flat_engine import Token, compute_threads
from .memory import cache_tokens
from .paged_attention import CACHE_TYPE, PASS_INPUTS, ROW_GROUP, SHAPE, Shape, page_attention
from .paged_cache import BlockPool, Blocks
from .prefix_cache import BLOCK
from .sampling import FloatArray


class OpenVinoContext:
    """A model and its cache, as `flat_engine.Context` describes them."""

    def __init__(self, graph: str, weights: str, context_length: int, sequences: int, state_bytes: int) -> None:
        """Load a model.

        Args:
            graph: A file that describes the graph, as the export of this project writes it.
            weights: The file with its weights.
            context_length: How many tokens a sequence may have.
            sequences: How many sequences the cache holds at most.
            state_bytes: How many bytes the states take at most.
        """
        self._graph = openvino.Core().read_model(graph, weights)
        shape = Shape(*(int(self._graph.get_rt_info([SHAPE, key]).astype(str)) for key in Shape._fields))
        cache_type, row_group = (self._graph.get_rt_info([SHAPE, key]).astype(str) for key in (CACHE_TYPE, ROW_GROUP))
        self._properties = _properties(cache_type, int(row_group))
        self.is_exact = cache_type == "f32"
        page_attention(self._graph, shape)
        self._process, self._request = os.getpid(), self._compiled()
        # Kept for ever: see _begin_anew.
        self._lost: list[openvino.InferRequest] = []
        caches = [_Cache.of(entry) for entry in self._request.model_inputs if "_cache." in entry.get_any_name()]
        self._block_tokens = next(cache.shape[1] for cache in caches if cache.name == "value_cache.0")
        self.bytes_per_token = sum(cache.block_bytes for cache in caches) // self._block_tokens
        self.cache_tokens = cache_tokens(self.bytes_per_token)
        # No more than the sequences take: all blocks have their addresses from the start.
        limit = math.inf if self.cache_tokens is None else self.cache_tokens * self.bytes_per_token
        self.state_bytes = int(min(state_bytes, limit))
        count = self._blocks(sequences, context_length)
        self._pool, self._caches = BlockPool(count, [cache.block_bytes for cache in caches]), caches
        self._bind()
        self._tables: dict[int, list[int]] = {}

    def run(self, tokens: list[Token]) -> FloatArray:
        """Compute tokens, those of a sequence side by side; return the wanted logits [wanted, vocabulary]."""
        if self._process != os.getpid():
            self._begin_anew()
        parts = [[*part] for _, part in groupby(tokens, key=lambda token: token.sequence)]
        tables = [self._table(part[-1].sequence, part[-1].position + 1) for part in parts]
        ends = [part[-1].position + 1 for part in parts]
        values = (
            [token.id for token in tokens],
            [token.position for token in tokens],
            [place for place, token in enumerate(tokens) if token.is_wanted],
            [part[0].position for part in parts],
            np.cumsum([0, *map(len, parts)]),
            np.concatenate(tables),
            np.cumsum([0, *map(len, tables)]),
            max(ends),
        )
        names = ("input_ids", "position_ids", "wanted", *PASS_INPUTS)
        for name, content in zip(names, values, strict=True):
            array = np.array(content, dtype=np.int32 if name in PASS_INPUTS else np.int64)
            self._request.set_tensor(name, openvino.Tensor(array))
        self._request.infer()
        return np.array(self._request.get_tensor("logits").data)

    def forget(self, sequence: int) -> None:
        """Drop a sequence."""
        self._pool.release(self._tables.pop(sequence, []))

    def empty(self) -> None:
        """Drop all sequences, and give back the memory of all blocks that no state holds."""
        for sequence in [*self._tables]:
            self.forget(sequence)
        self._pool.shrink()

    def state(self, sequence: int) -> Blocks:
        """Return the blocks of a sequence."""
        return Blocks(self._pool, [*self._tables.get(sequence, [])])

    def restore(self, sequence: int, state: Blocks, length: int) -> None:
        """Begin a sequence with the keys and values of so many tokens. It gets a copy of a block that is not full."""
        whole, rest = divmod(length, self._block_tokens)
        table = self._tables[sequence] = state.numbers[:whole]
        self._pool.share(table)
        if rest:
            table.append(self._pool.copy(state.numbers[whole]))

    def _compiled(self) -> openvino.InferRequest:
        """Return the graph, ready to compute."""
        return openvino.Core().compile_model(self._graph, "CPU", self._properties).create_infer_request()

    def _bind(self) -> None:
        """Give the graph the memory of the cache."""
        for cache, memory in zip(self._caches, self._pool.memories, strict=True):
            self._request.set_tensor(cache.name, openvino.Tensor(memory, [len(memory), *cache.shape], cache.kind))

    def _begin_anew(self) -> None:
        """Compile the graph again in a forked process, which has no other threads.

        What is there may be in the middle of a pass. Freeing it would wait for the threads.
        """
        self._lost.append(self._request)
        self._process, self._request = os.getpid(), self._compiled()
        self._bind()

    def _table(self, sequence: int, length: int) -> list[int]:
        """Return the blocks of a sequence, enough for its length."""
        table = self._tables.setdefault(sequence, [])
        while len(table) * self._block_tokens < length:
            table.append(self._pool.take())
        return table

    def _blocks(self, sequences: int, context: int) -> int:
        """Return how many blocks there can be at most. Each sequence and each state may have one that is not full."""
        most = sequences * context
        # One sequence is admitted in any case.
        tokens = most if self.cache_tokens is None else min(most, max(self.cache_tokens, 2 * context))
        kept = self.state_bytes // (self.bytes_per_token * BLOCK)
        return -(-tokens // self._block_tokens) + sequences + kept + 1


class _Cache(NamedTuple):
    """An input for keys or values: its name and type, and the shape of a block [heads, tokens, columns]."""

    name: str
    kind: openvino.Type
    shape: list[int]

    @staticmethod
    def of(entry: openvino.Output) -> "_Cache":
        """Return what a compiled graph wants. Quantised keys have their scales in further rows of a block."""
        shape = [axis.get_length() for axis in list(entry.partial_shape)[1:]]
        return _Cache(entry.get_any_name(), entry.element_type, shape)

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block."""
        return math.prod(self.shape) * int(self.kind.size)


def _properties(cache_type: str, row_group: int) -> dict[str, Any]:
    """Return how the processor computes: in fp32, apart from weights of few bits, and without cores of its own."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": cache_type,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": row_group if _may_multiply_int8() else 0,
        "INFERENCE_NUM_THREADS": compute_threads(),
        "ENABLE_CPU_PINNING": False,
    }


def _may_multiply_int8() -> bool:
    """Return False if the variable ONEDNN_MAX_CPU_ISA forbids AVX-512: OpenVINO fails then if the processor has it.

    On a processor that does not have it, OpenVINO multiplies int8 in another way.
    """
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper().startswith(("AVX512", "AVX10", "ALL", "DEFAULT"))
