"""One stream against what the memory allows: every token reads all weights once, but for the embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place, short_name
from steps.benchmarking.sections.engines import answer
from steps.evaluation.machine import read_bandwidth

# An answer is long, so that reading its prompt is a small part of it.
TOKENS = 4
WEIGHTS = (".safetensors", ".onnx", ".data", ".weights")
GPU_BYTES, READS = 2 * 2**30, 5
EMBEDDING = "model.embed_tokens.weight"


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield one stream of each variant against reading its weights from the memory of its device."""
    variants = [place.pyfunc("bf16")]
    if place.device == "cpu":
        variants += [place.pyfunc("int8"), ("mode=onnx", "precision=int4"), ("mode=openvino", "precision=int4")]
    bandwidth = read_bandwidth if place.device == "cpu" else _gpu_bandwidth
    for overrides in variants:
        yield from _against(place, overrides, bandwidth)


def _against(place: Place, overrides: tuple[str, ...], bandwidth: Callable[[], float]) -> Iterator[Comparison]:
    """Yield one stream of a variant against reading its weights at a bandwidth, in bytes per second."""
    with place.loaded(*overrides) as loaded:
        scheduler = loaded.unwrap_python_model().scheduler
        # The answer is drawn: a random model repeats itself, so speculation would look faster than on real text.
        stream = partial(answer, place, scheduler, 1, TOKENS * place.size.tokens, temperature=1.0)
        size = weights_bytes(place.model(*overrides))
        yield Comparison(
            Side(f"{short_name(overrides)}, one stream", stream),
            Side("reading its weights from memory", lambda: bandwidth() / size),
        )


def _gpu_bandwidth() -> float:
    """Measure how many bytes per second a GPU reads from its memory: the best of READS reads."""
    import torch

    numbers = torch.ones(GPU_BYTES // 4, device="cuda")
    best = 0.0
    for _ in range(READS):
        torch.cuda.synchronize()
        started = perf_counter()
        float(numbers.sum())
        best = max(best, GPU_BYTES / (perf_counter() - started))
    return best


def weights_bytes(folder: Path) -> int:
    """Return the bytes of the weights in a model's folder that each token reads: of the embedding it reads one row."""
    whole = sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHTS)
    return whole - sum(map(_embedding_bytes, folder.rglob("*")))


def _embedding_bytes(file: Path) -> int:
    """Return the bytes of the embedding in a file of weights, or that a graph refers to; 0 if it has none."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as weights:
            return int(weights.get_tensor(EMBEDDING).nbytes) if EMBEDDING in weights.keys() else 0  # noqa: SIM118
    if file.suffix == ".onnx":
        import onnx

        graph = onnx.load(file, load_external_data=False).graph
        return sum(_tensor_bytes(tensor) for tensor in graph.initializer if tensor.name == EMBEDDING)
    if file.suffix == ".xml":
        import openvino

        graph = openvino.Core().read_model(file, file.with_suffix(".weights"))
        ids = graph.input("input_ids").get_node().output(0)
        (embedding,) = (entry.get_node() for entry in ids.get_target_inputs())
        return _constant_bytes(embedding.input_value(0).get_node())
    return 0


def _constant_bytes(node: Any) -> int:
    """Return the bytes of all constants that a node of OpenVINO is made from."""
    if node.get_type_name() == "Constant":
        return int(node.get_byte_size())
    return sum(_constant_bytes(output.get_node()) for output in node.input_values())


def _tensor_bytes(tensor: Any) -> int:
    import onnx

    numbers = math.prod(tensor.dims)
    return int(numbers * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
