"""Attention of one new token for each row, on the CPU, where several heads share keys and values.

Where there is a mask, transformers copies the keys and values for each head, every time, before it calls torch's
attention. Two products of matrices need no copy. Everything else is left to transformers.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Its name among transformers' kinds of attention.
NAME = "phi3_grouped"
# Below so many keys in all rows, the other way is as fast: python -m tests.benchmarks.attention.
FEWEST_KEYS = 128


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention [rows, queries, heads, head size], in the form of transformers' attention functions.

    Args:
        module: The layer.
        query: [rows, heads, queries, head size].
        key: [rows, shared heads, keys, head size].
        value: The same shape as `key`.
        attention_mask: True where a query may look [rows, 1, queries, keys]; None if everywhere.
        scaling: What products are multiplied with; 1 / sqrt(head size) if it is None.
        others: What transformers' own function takes besides.
    """
    rows, shared, keys, _ = key.shape
    is_grouped = query.shape[1] > shared and query.shape[2] == 1 and query.device.type == "cpu"
    # In fp32 and without a mask, torch's attention needs no copy either.
    is_slow = attention_mask is not None or query.dtype != torch.float32
    if is_grouped and is_slow and rows * keys >= FEWEST_KEYS:
        return _attend_once(query, key, value, attention_mask, scaling), None
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **others
    )
    return output


def _attend_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Return the attention [rows, 1, heads, head size] of one query for each row."""
    rows, shared, keys, size = key.shape
    products = torch.bmm(key.flatten(0, 1), query.reshape(rows * shared, -1, size).transpose(1, 2))
    scores = products.view(rows, shared, keys, -1).transpose(2, 3).float() * (
        size**-0.5 if scaling is None else scaling
    )
    if mask is not None:
        # Not -inf: a row may be all padding so far, and its NaN would stay in the cache.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype).reshape(rows * shared, -1, keys)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, 1, -1, size)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
