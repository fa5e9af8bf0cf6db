"""Compare the ways to multiply the matrices of Phi-3-mini: torch's, ONNX Runtime's, and OpenVINO's if it is installed.

    python -m tests.benchmarks.kernels --rounds 2

Prints tokens/s by the number of rows in a call: the matrix products of one layer, times 32 layers, and nothing else of
the model. The kinds take turns. int4 weights have a scale for each group of 32 or 128: `torch int4` is torch's kernel
for them, `torch int4, unpacked` makes bf16 weights of them in each call. Takes about three minutes on 2 cores.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from steps.wrappers.engines.int8_linear import int8_linear, quantize

# Outputs and inputs of the matrices of a layer: qkv, attention output, gate and up, down.
SHAPES = ((9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192))
LAYERS, ROWS = 32, (1, 4, 8, 16, 64, 256)
# A call is repeated for as long as this, in seconds.
LEAST = 0.3

# Multiplies rows [rows, inputs] with a matrix.
Product = Callable[[torch.Tensor], torch.Tensor]


def products(weights: torch.Tensor) -> dict[str, tuple[torch.dtype, Product]]:
    """Return each kind's type of the rows and its product with weights [outputs, inputs]."""
    whole = weights.bfloat16()
    kinds = {
        "torch fp32": (torch.float32, lambda rows: rows @ weights.T),
        "torch bf16": (torch.bfloat16, lambda rows: rows @ whole.T),
        "torch int8": (torch.float32, int8_linear(*quantize(weights), None)),
        "torch int4": (torch.bfloat16, torch_int4(weights)),
        "torch int4, unpacked": (torch.bfloat16, torch_int4_unpacked(weights)),
        "ONNX Runtime int4": (torch.float32, onnx_runtime_int4(weights, 32)),
        "ONNX Runtime int4, groups of 128": (torch.float32, onnx_runtime_int4(weights, 128)),
    }
    if importlib.util.find_spec("openvino"):
        kinds["OpenVINO int4, groups of 128"] = (torch.float32, openvino_int4(weights, 128))
    return kinds


def group_integers(weights: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights as integers from 0 to 15 [outputs, inputs], and the scales [outputs, groups]."""
    groups = weights.view(len(weights), -1, group)
    scales = groups.abs().amax(dim=-1) / 7
    return (torch.round(groups / scales[..., None]) + 8).clamp(0, 15).int().view_as(weights), scales


def halves(integers: torch.Tensor) -> torch.Tensor:
    """Return two integers in each byte, the first in the lower half."""
    return (integers[:, ::2] | integers[:, 1::2] << 4).to(torch.uint8)


def torch_int4(weights: torch.Tensor) -> Product:
    """Return torch's product with int4 weights."""
    integers, scales = group_integers(weights, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
    # The kernel subtracts 8 from the integers.
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1).transpose(0, 1).contiguous().bfloat16()
    return lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, 32, scales_and_zeros)


def torch_int4_unpacked(weights: torch.Tensor) -> Product:
    """Return a product that makes bf16 weights of int4 ones first."""
    integers, scales = group_integers(weights, 32)
    packed, scales = halves(integers), scales.bfloat16()[..., None]

    def product(rows: torch.Tensor) -> torch.Tensor:
        both = torch.stack([packed & 15, packed >> 4], dim=-1).view(len(weights), -1, 32)
        return rows @ ((both.bfloat16() - 8) * scales).view(len(weights), -1).T

    return product


def onnx_runtime_int4(weights: torch.Tensor, group: int) -> Product:
    """Return the product of ONNX Runtime's MatMulNBits with int8 arithmetic, as in an export with int4."""
    integers, scales = group_integers(weights, group)
    outputs, inputs = weights.shape
    packed = halves(integers).view(outputs, inputs // group, group // 2).numpy()
    options = {"K": inputs, "N": outputs, "bits": 4, "block_size": group, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["rows", "packed", "scales"], ["out"], domain="com.microsoft", **options)
    tensors = {"packed": packed, "scales": scales.float().numpy().reshape(-1)}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("rows", inputs), ("out", outputs))
    ]
    graph = helper.make_graph(
        [node], "product", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: torch.from_numpy(session.run(None, {"rows": rows.numpy()})[0])


def openvino_int4(weights: torch.Tensor, group: int) -> Product:
    """Return OpenVINO's product with weights that it decompresses."""
    import openvino
    from openvino import opset15 as ops

    integers, scales = group_integers(weights, group)
    outputs, inputs = weights.shape
    form = [outputs, inputs // group, group]
    packed = openvino.op.Constant(
        openvino.Tensor(halves(integers).numpy().reshape(-1), form, openvino.Type.u4), shared_memory=False
    )
    eights = ops.convert(ops.constant(np.array(8, dtype=np.uint8)), "f16")
    whole = ops.subtract(ops.convert(packed, "f16"), eights)
    scaled = ops.multiply(whole, ops.constant(scales.half().numpy()[..., None]))
    matrix = ops.convert(ops.reshape(scaled, ops.constant(np.array([outputs, inputs])), False), "f32")
    rows = ops.parameter([-1, inputs], np.float32, name="rows")
    model = openvino.Model([ops.matmul(rows, matrix, False, True)], [rows])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda values: torch.from_numpy(request.infer({"rows": values.numpy()}, share_inputs=True)[0])


def check(weights: torch.Tensor) -> None:
    """Raise AssertionError if a kind does not multiply with these weights."""
    rows = torch.randn(4, weights.shape[1])
    expected = rows @ weights.T
    for name, (dtype, product) in products(weights).items():
        error = (product(rows.to(dtype)).float() - expected).norm() / expected.norm()
        assert error < 0.15, f"{name} differs by {error:.2f}"


def seconds(product: Product, rows: torch.Tensor) -> float:
    """Return the seconds of one call."""
    started, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - started < LEAST:
        product(rows)
        calls += 1
    return (time.perf_counter() - started) / calls


@torch.inference_mode()
def main(rounds: int, beginning: str) -> None:
    """Measure every kind whose name has this beginning, at every number of rows; print the table."""
    check(torch.randn(256, 512) * 0.02)
    table = Table(title=f"tokens/s of {LAYERS} layers' matrix products, medians of {rounds} rounds")
    for column in ("kind", *(f"{rows} rows" for rows in ROWS)):
        table.add_column(column, justify="left" if column == "kind" else "right")
    times: dict[tuple[str, int], list[float]] = {}
    for shape in SHAPES:
        whole = products(torch.randn(shape) * 0.02)
        kinds = {name: kind for name, kind in whole.items() if name.startswith(beginning)}
        for count in ROWS:
            inputs = torch.randn(count, shape[1])
            for place in range(rounds + 1):
                for name, (dtype, product) in kinds.items():
                    taken = seconds(product, inputs.to(dtype))
                    # The first round does not count.
                    times.setdefault((name, count), [0.0] * rounds)
                    times[name, count][place - 1] += taken if place else 0.0
    for name in kinds:
        table.add_row(name, *(f"{count / LAYERS / statistics.median(times[name, count]):.1f}" for count in ROWS))
    Console(width=110).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="", help="only those whose name begins so")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.kinds)
