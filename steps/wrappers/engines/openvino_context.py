"""A graph of OpenVINO with paged attention: tokens of many sequences in, logits out.

The cache consists of blocks, and a sequence has a list of them, so nothing is copied when it grows. What sequences
share stands in the same blocks.
"""

import math
import mmap
import os
from collections import Counter
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import openvino
from openvino import opset13
from openvino.op import Parameter, _PagedAttentionExtension

from .flat_engine import Token, compute_threads
from .memory import cache_tokens
from .prefix_cache import BLOCK
from .sampling import FloatArray

# Where the file says how the keys and values are made.
SHAPE = "phi3"
# Inputs of a pass besides the tokens: for each sequence how many are computed already, where its tokens begin in the
# pass, its blocks and where these begin; and how long the longest sequence gets.
PASS_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len")


class Shape(NamedTuple):
    """How the keys and values of a model are made; a sliding window of 0 is none."""

    key_heads: int
    head_size: int
    sliding_window: int
    context_length: int


class Blocks:
    """Blocks of the cache that hold the beginning of a sequence; free again when nobody has this object."""

    def __init__(self, pool: "_Pool", numbers: list[int]) -> None:
        self.numbers, self._pool = numbers, pool
        pool.share(numbers)

    def __del__(self) -> None:
        self._pool.release(self.numbers)


class OpenVinoContext:
    """A model and its cache, as `flat_engine.Context` describes them."""

    def __init__(self, file: str, sequences: int, prefix_cache_bytes: int) -> None:
        """Load a model.

        Args:
            file: A graph that steps/modes/openvino_export.py has written.
            sequences: How many sequences the cache holds at most.
            prefix_cache_bytes: How many bytes the states take at most.
        """
        self._graph = openvino.Core().read_model(file)
        shape = Shape(*(int(self._graph.get_rt_info([SHAPE, key]).astype(str)) for key in Shape._fields))
        self._cache_type = self._graph.get_rt_info([SHAPE, "cache_type"]).astype(str)
        self.is_exact = self._cache_type == "f32"
        _page_attention(self._graph, shape)
        self._process, self._request = os.getpid(), self._compiled()
        # Kept for ever: see _begin_anew.
        self._lost: list[openvino.InferRequest] = []
        caches = [_Cache.of(entry) for entry in self._request.model_inputs if "_cache." in entry.get_any_name()]
        self._block_tokens = next(cache.shape[1] for cache in caches if cache.name == "value_cache.0")
        self.bytes_per_token = sum(cache.block_bytes for cache in caches) // self._block_tokens
        self.cache_tokens = cache_tokens(self.bytes_per_token)
        count = self._blocks(sequences, shape.context_length, prefix_cache_bytes)
        self._pool, self._caches = _Pool(count, [cache.block_bytes for cache in caches]), caches
        self._bind()
        self._tables: dict[int, list[int]] = {}
        self._inputs: list[openvino.Tensor] = []

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
        # Kept until the pass is over.
        self._inputs = []
        for name, content in zip(names, values, strict=True):
            array = np.array(content, dtype=np.int32 if name in PASS_INPUTS else np.int64)
            self._inputs.append(openvino.Tensor(array))
            self._request.set_tensor(name, self._inputs[-1])
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
        table = state.numbers[:whole]
        self._pool.share(table)
        if rest:
            table = [*table, self._pool.copy(state.numbers[whole])]
        self._tables[sequence] = table

    def _compiled(self) -> openvino.InferRequest:
        """Return the graph, ready to compute."""
        return openvino.Core().compile_model(self._graph, "CPU", _properties(self._cache_type)).create_infer_request()

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

    def _blocks(self, sequences: int, context: int, prefix_cache_bytes: int) -> int:
        """Return how many blocks there can be at most. Each sequence and each state may have one that is not full."""
        most = sequences * context
        # One sequence is admitted in any case.
        tokens = most if self.cache_tokens is None else min(most, max(self.cache_tokens, 2 * context))
        kept = prefix_cache_bytes // (self.bytes_per_token * BLOCK)
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


class _Pool:
    """The blocks of all layers' keys and values. Memory is taken when a block is first written."""

    def __init__(self, count: int, block_bytes: list[int]) -> None:
        """Make `count` blocks; each cache has its own bytes in one."""
        self._maps = [_memory(count * size) for size in block_bytes]
        self.memories = [np.frombuffer(memory, dtype=np.uint8).reshape(count, -1) for memory in self._maps]
        # The last one that was released is taken first, so that few are ever written.
        self._free = [*reversed(range(count))]
        self._uses: Counter[int] = Counter()
        self._written: set[int] = set()

    def take(self) -> int:
        """Return a block that nobody has."""
        number = self._free.pop()
        self._uses[number] = 1
        self._written.add(number)
        return number

    def share(self, numbers: list[int]) -> None:
        """Count one more that has these blocks."""
        self._uses.update(numbers)

    def release(self, numbers: list[int]) -> None:
        """Count one less that has these blocks."""
        for number in numbers:
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number]
                self._free.append(number)

    def copy(self, number: int) -> int:
        """Return a block with the same keys and values."""
        copied = self.take()
        for memory in self.memories:
            memory[copied] = memory[number]
        return copied

    def shrink(self) -> None:
        """Give back the memory of all blocks that nobody has."""
        unused = sorted(self._written - self._uses.keys())
        self._written &= self._uses.keys()
        # Neighbors together: only whole pages can be given back.
        for _, run in groupby(enumerate(unused), key=lambda entry: entry[1] - entry[0]):
            numbers = [number for _, number in run]
            for memory, blocks in zip(self._maps, self.memories, strict=True):
                _give_back(memory, numbers[0] * blocks.shape[1], (numbers[-1] + 1) * blocks.shape[1])


def _memory(size: int) -> mmap.mmap:
    """Return zeros that take memory when they are written."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, size)


def _give_back(memory: mmap.mmap, start: int, end: int) -> None:
    """Give back the whole pages between two bytes, where the system takes them."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED, start, end - start)


def _page_attention(graph: openvino.Model, shape: Shape) -> None:
    """Put paged attention in the place of each attention of a graph."""
    entries = {name: _input(name, [] if name == "max_context_len" else [-1]) for name in PASS_INPUTS}
    named = {name: output for node in graph.get_ops() for output in node.outputs() for name in output.get_names()}
    caches = []
    for layer in range(sum(name.startswith("attention.") for name in named)):
        cache = [_cache(f"{kind}_cache.{layer}", shape.key_heads) for kind in ("key", "value")]
        computed = [named[f"{role}.{layer}"] for role in ("query", "key", "value")]
        paged = _PagedAttentionExtension([*computed, *_settings(cache, entries, shape)])
        for key, value in (("num_k_heads", shape.key_heads), ("num_v_heads", shape.key_heads)):
            paged.get_rt_info()[key] = value
        for key in ("k_head_size", "v_head_size"):
            paged.get_rt_info()[key] = shape.head_size
        named[f"attention.{layer}"].replace(paged.output(0))
        caches += cache
    graph.add_parameters([*entries.values(), *caches])
    graph.validate_nodes_and_infer_types()


def _settings(cache: list[Parameter], entries: dict[str, Parameter], shape: Shape) -> list[openvino.Output]:
    """Return the inputs of paged attention after queries, keys and values.

    Besides the cache and the pass they are the scale, the window, and what is not used here: slopes (ALiBi), scores,
    the rotation and the eviction of blocks, sparse attention, sinks, image tokens.
    """
    integer, no_integers, no_floats = np.int32(0), np.zeros(0, np.int32), np.zeros(0, np.float32)
    constants: list[Any] = [np.float32(shape.head_size**-0.5), np.int32(shape.sliding_window), no_floats]
    unused: list[Any] = [no_integers] * 3 + [no_floats] * 2 + [integer] * 2
    unused += [np.zeros((0, 0, 0, 0), np.float32), integer, *[no_integers] * 4, np.zeros(0, np.uint8), no_integers]
    *pass_inputs, longest = (entries[name] for name in PASS_INPUTS)
    nodes = [*cache, *pass_inputs, *map(opset13.constant, constants), longest, *map(opset13.constant, unused)]
    return [node.output(0) for node in nodes]


def _input(name: str, shape: list[int]) -> Parameter:
    node = opset13.parameter(shape, np.int32, name)
    node.output(0).set_names({name})
    return node


def _cache(name: str, heads: int) -> Parameter:
    """Return an input for keys or values. The processor's plugin decides the type and the layout of a block."""
    node = Parameter(openvino.Type.dynamic, openvino.PartialShape([-1, heads, -1, -1]))
    node.output(0).set_names({name})
    return node


def _properties(cache_type: str) -> dict[str, Any]:
    """Return how the processor computes: in fp32, apart from weights of few bits, and without cores of its own."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": cache_type,
        "INFERENCE_NUM_THREADS": compute_threads(),
        "ENABLE_CPU_PINNING": False,
    }
