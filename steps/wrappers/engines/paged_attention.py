"""Put paged attention in the place of each attention of a graph: keys and values stand in blocks of a cache.

OpenVINO has no stable interface for it, and cannot read a graph from a file that holds it.
"""

from typing import Any, NamedTuple

import numpy as np
import openvino
from openvino import opset13
from openvino.op import Parameter, _PagedAttentionExtension

# Where a graph has what this project adds to it.
SHAPE = "phi3"
# The type of the keys and values in the cache.
CACHE_TYPE = "cache_type"
# How many numbers of a row share a scale, if the weights have few bits.
ROW_GROUP = "row_group"
# Inputs of a pass besides the tokens: for each sequence how many are computed already, where its tokens begin in the
# pass, its blocks and where these begin; and how long the longest sequence gets.
PASS_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len")


class Shape(NamedTuple):
    """How the keys and values of a model are made; a sliding window of 0 is none."""

    key_heads: int
    head_size: int
    sliding_window: int


def page_attention(graph: openvino.Model, shape: Shape) -> None:
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
