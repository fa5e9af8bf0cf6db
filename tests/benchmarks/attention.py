"""Compare the attention of one token for each row, where heads share keys and values, with that of transformers.

    python -m tests.benchmarks.attention

Prints the milliseconds of one layer by rows and keys, and how many times as fast the grouped attention of `mode=pyfunc`
is; medians. The shapes are those of SmolLM2 (9 heads, 3 shared) and Phi-4-mini (24 heads, 8 shared). Both sides take
turns, over the caches of some layers, because those of a model do not fit into a processor's cache.
"""

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steps.wrappers.engines.grouped_attention import attend

# Heads, shared heads, head size.
SHAPES = {"SmolLM2": (9, 3, 64), "Phi-4-mini": (24, 8, 128)}
ROWS, KEYS, LAYERS, ROUNDS = (1, 4, 16), (50, 200, 800), 8, 9

Attention = Callable[..., tuple[torch.Tensor, None]]


def seconds(attention: Attention, layer: Any, query: torch.Tensor, caches: list[torch.Tensor]) -> float:
    """Return how long one layer takes, by all of them."""
    # A row alone has no padding, so there is no mask.
    mask = None if len(query) == 1 else torch.ones(len(query), 1, 1, caches[0].shape[3], dtype=torch.bool)
    started = time.perf_counter()
    for keys, values in caches:
        attention(layer, query, keys, values, mask)
    return (time.perf_counter() - started) / len(caches)


@torch.inference_mode()
def main() -> None:
    """Print a table for each type."""
    for dtype in (torch.float32, torch.bfloat16):
        table = Table("shape", "rows", "keys", "transformers, ms", "grouped, ms", "times", title=str(dtype))
        for name, (heads, shared, size) in SHAPES.items():
            layer = SimpleNamespace(num_key_value_groups=heads // shared, is_causal=True)
            for rows in ROWS:
                for keys in KEYS:
                    query = torch.randn(rows, heads, 1, size, dtype=dtype)
                    caches = [torch.randn(2, rows, shared, keys, size, dtype=dtype) for _ in range(LAYERS)]
                    pairs = [
                        [seconds(attention, layer, query, caches) for attention in (sdpa_attention_forward, attend)]
                        for _ in range(ROUNDS)
                    ]
                    theirs, ours = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
                    times = statistics.median(one / other for one, other in pairs)
                    table.add_row(name, str(rows), str(keys), f"{theirs:.3f}", f"{ours:.3f}", f"{times:.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
