"""Compare torch's ways to multiply the matrices of Phi-3-mini: whole precisions, int8, and int4 weights.

    python -m tests.benchmarks.kernels --rounds 5

Prints tokens/s by the number of rows in a call: the matrix products of one layer, times 32 layers, and nothing else of
the model. The kinds take turns. int4 weights have a scale for each group of 32: `int4` is torch's kernel for them,
`int4, unpacked` makes bf16 weights of them in each call. Takes about two minutes on 2 cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from steps.wrappers.engines.int8_linear import Int8Linear, quantize

# Outputs and inputs of the matrices of a layer: qkv, attention output, gate and up, down.
SHAPES = ((9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192))
LAYERS, ROWS, GROUP = 32, (1, 4, 8, 16, 64, 256), 32
# A call is repeated for as long as this, in seconds.
LEAST = 0.3

# Multiplies rows [rows, inputs] with a matrix.
Product = Callable[[torch.Tensor], torch.Tensor]


def products(weights: torch.Tensor) -> dict[str, tuple[torch.dtype, Product]]:
    """Return each kind's type of the rows and its product with weights [outputs, inputs]."""
    whole = weights.bfloat16()
    integers, scales = group_integers(weights)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int(), 1)
    # The kernel subtracts 8 from the integers.
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], dim=-1).transpose(0, 1).contiguous().bfloat16()
    halves = (integers[:, ::2] | integers[:, 1::2] << 4).to(torch.uint8)

    def unpacked(rows: torch.Tensor) -> torch.Tensor:
        both = torch.stack([halves & 15, halves >> 4], dim=-1).view(len(weights), -1, GROUP)
        return rows @ ((both.bfloat16() - 8) * scales.bfloat16()[..., None]).view(len(weights), -1).T

    return {
        "fp32": (torch.float32, lambda rows: rows @ weights.T),
        "bf16": (torch.bfloat16, lambda rows: rows @ whole.T),
        "int8": (torch.float32, Int8Linear(*quantize(weights), None)),
        "int4": (
            torch.bfloat16,
            lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, scales_and_zeros),
        ),
        "int4, unpacked": (torch.bfloat16, unpacked),
    }


def group_integers(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights as integers from 0 to 15 [outputs, inputs], and the scales [outputs, groups]."""
    groups = weights.view(len(weights), -1, GROUP)
    scales = groups.abs().amax(dim=-1) / 7
    return (torch.round(groups / scales[..., None]) + 8).clamp(0, 15).int().view_as(weights), scales


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
def main(rounds: int) -> None:
    """Measure every kind at every number of rows; print the table."""
    check(torch.randn(256, 512) * 0.02)
    table = Table(title=f"tokens/s of {LAYERS} layers' matrix products, medians of {rounds} rounds")
    for column in ("kind", *(f"{rows} rows" for rows in ROWS)):
        table.add_column(column, justify="left" if column == "kind" else "right")
    times: dict[tuple[str, int], list[float]] = {}
    for shape in SHAPES:
        kinds = products(torch.randn(shape) * 0.02)
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
    Console(width=100).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args().rounds)
