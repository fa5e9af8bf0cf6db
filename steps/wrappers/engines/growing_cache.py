"""A key-value cache that writes new tokens in place; transformers' own copies the whole cache for every token."""

from functools import partial
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

# Spare columns in newly allocated memory.
SPARE = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [rows, heads, width, head size]. To cut or join rows, assign `keys` and `values`."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, columns: int = 0) -> None:
        """Begin empty, in memory for at least as many columns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._columns = columns

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, columns: int = 0) -> "GrowingLayer":
        """Return a layer that begins with keys and values, and grows once to at least as many columns."""
        layer = cls(columns)
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        return layer

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new columns and return all keys and values."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            # Start empty: the first values are a view of a projection three times as large, which must not stay alive.
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.keys = _append(self.keys, key_states, self._columns)
        self.values = _append(self.values, value_states, self._columns)
        return self.keys, self.values


def growing_cache(columns: int = 0) -> Cache:
    """Return an empty cache, for at least as many columns. Its layers are created by the first forward pass."""
    return Cache(layer_class_to_replicate=partial(GrowingLayer, columns))  # type: ignore[arg-type]


def joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the rows of both as one tensor with spare columns, padded on the left with zeros to the wider one."""
    _, heads, _, size = one.shape
    width = max(one.shape[2], other.shape[2])
    memory = one.new_empty(len(one) + len(other), heads, width + SPARE, size)
    for rows, part in ((memory[: len(one)], one), (memory[len(one) :], other)):
        first = width - part.shape[2]
        rows[:, :, :first] = 0
        rows[:, :, first:width] = part
    return memory[:, :, :width]


def _append(old: torch.Tensor, new: torch.Tensor, columns: int) -> torch.Tensor:
    """Return old and new columns as one tensor: in the memory of `old` if it has spare columns, else in new memory."""
    rows, heads, width, size = old.shape
    total = width + new.shape[2]
    # The distance between two heads shows how many columns were allocated.
    is_ours = old.storage_offset() == 0 and old.stride() == (heads * old.stride(1), old.stride(1), size, 1)
    is_ours &= width > 0  # an empty tensor has strides, and no memory
    if not is_ours or old.stride(1) < total * size:
        allocated = old.new_empty(rows, heads, max(total, columns) + SPARE, size)
        allocated[:, :, :width] = old
        old = allocated[:, :, :width]
    grown = old.as_strided((rows, heads, total, size), old.stride())
    grown[:, :, width:] = new
    return grown
