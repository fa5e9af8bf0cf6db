"""The control measurement: the same work every time, so that its seconds change only with the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from steps.wrappers.engines.threads import release_helpers

if TYPE_CHECKING:
    from torch import Tensor

WIDTH, READS = 768, 5
# How many products, and how many numbers are read. A GPU needs more of them for a time that can be compared.
WORK = {"cpu": (8, 8 * 2**20), "cuda": (2_000, 2**28)}


def control(device: str) -> Callable[[], float]:
    """Return a measurement of the seconds that a fixed piece of work takes on a device: the best of READS times.

    The work is what engines do: products of matrices, and reading memory.
    """
    import torch

    torch.manual_seed(0)
    products, read = WORK[device]
    matrix = torch.randn(WIDTH, WIDTH, device=device)
    once = partial(_seconds, matrix, products, torch.ones(read, device=device))
    once()

    def best() -> float:
        seconds = min(once() for _ in range(READS))
        # The helpers of this thread would slow down the engine that is measured next.
        release_helpers()
        return seconds

    return best


def _seconds(matrix: Tensor, products: int, numbers: Tensor) -> float:
    started = perf_counter()
    product = matrix
    for _ in range(products):
        product = product @ matrix / WIDTH
    # A number that is read waits for all of the work, also on a GPU.
    float(product[0, 0] + numbers.sum())
    return perf_counter() - started
