"""A key-value cache with room for more tokens and rows; transformers' own copies the whole cache for every token."""

from functools import partial
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

# Spare columns in newly allocated memory.
SPARE = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [rows, heads, width, head size]: views of memory [2, most rows, heads, columns, head size]."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, columns: int = 0) -> None:
        """Begin empty. The first tokens get memory for at least as many columns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._columns = columns
        self._first = 0

    @classmethod
    def empty(cls, like: torch.Tensor, rows: int, width: int, columns: int) -> "GrowingLayer":
        """Return a layer of rows whose keys and values are still to be written, in memory for more columns.

        Args:
            like: Keys or values [heads, any width, head size] of the model.
            rows: How many rows the layer has.
            width: How many columns they have.
            columns: How many they will have at least.
        """
        layer = cls(columns)
        layer.dtype, layer.device, layer.is_initialized = like.dtype, like.device, True
        heads, _, size = like.shape
        layer._memory = like.new_empty(2, rows, heads, max(width, columns) + SPARE, size)
        layer._show(rows, 0, width)
        return layer

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new columns and return all keys and values."""
        rows, heads, width, size = key_states.shape
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._memory = key_states.new_empty(2, rows, heads, max(width, self._columns) + SPARE, size)
            self._show(rows, 0, 0)
        if self._end + width > self._memory.shape[3]:
            self._move(rows, 0, max(self.keys.shape[2] + width, self._columns))
        self._show(rows, self._first, self._end + width)
        self.keys[:, :, -width:], self.values[:, :, -width:] = key_states, value_states
        return self.keys, self.values

    def cut(self, columns: int) -> None:
        """Forget the last columns."""
        self._show(len(self.keys), self._first, self._end - columns)

    def keep(self, rows: list[int], columns: int) -> None:
        """Keep some rows, in an order in which only rows after the last place move, and the last columns."""
        first = self._end - columns
        places = [place for place, row in enumerate(rows) if place != row]
        if places:
            kept = self._memory[:, :, :, first : self._end]
            kept[:, places] = kept[:, [rows[place] for place in places]]
        self._show(len(rows), first, self._end)
        if first > columns or 3 * len(rows) < self._memory.shape[1]:
            self._move(len(rows), 0, columns)

    def join(self, other: "GrowingLayer", most_rows: int) -> None:
        """Append the rows of another layer; those of the narrower one get zeros on their left.

        Args:
            other: The other one.
            most_rows: How many rows there will be at most.
        """
        ours, rows = len(self.keys), len(self.keys) + len(other.keys)
        width = max(self.keys.shape[2], other.keys.shape[2])
        padding, theirs = width - self.keys.shape[2], width - other.keys.shape[2]
        if rows > self._memory.shape[1] or padding > self._first:
            self._move(min(2 * rows, most_rows), padding, width)
        self._show(rows, self._first - padding, self._end)
        for all_rows, new in ((self.keys, other.keys), (self.values, other.values)):
            all_rows[:ours, :, :padding] = 0
            all_rows[ours:, :, :theirs] = 0
            all_rows[ours:, :, theirs:] = new

    @property
    def _end(self) -> int:
        """Return the column of the memory after the last one in use."""
        return self._first + self.keys.shape[2]

    def _show(self, rows: int, first: int, end: int) -> None:
        """Let keys and values be these rows and columns of the memory."""
        self._first = first
        self.keys, self.values = self._memory[:, :rows, :, first:end]

    def _move(self, rows: int, first: int, columns: int) -> None:
        """Move keys and values to the column `first` of new memory for `rows` rows and more than `columns` columns."""
        keys, values = self.keys, self.values
        used, heads, width, size = keys.shape
        self._memory = keys.new_empty(2, rows, heads, columns + SPARE, size)
        self._show(used, first, first + width)
        self.keys.copy_(keys)
        self.values.copy_(values)


def growing_cache(columns: int = 0) -> Cache:
    """Return an empty cache, for at least as many columns. Its layers are created by the first forward pass."""
    return Cache(layer_class_to_replicate=partial(GrowingLayer, columns))  # type: ignore[arg-type]
