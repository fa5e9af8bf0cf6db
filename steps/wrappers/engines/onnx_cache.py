"""The key-value cache of the ONNX engine: an array [layers, 2, rows, heads, capacity, head size]."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .lazy_array import lazy_array
from .sampling import FloatArray

CAPACITY_STEP = 64


@dataclass(frozen=True)
class CacheForm:
    """What all caches of a model have in common.

    Attributes:
        layers: Of the model.
        heads: Keys and values of a layer.
        head_size: Numbers of a head.
        dtype: Of these numbers.
        context_length: The most tokens that a row can have.
    """

    layers: int
    heads: int
    head_size: int
    dtype: np.dtype[Any]
    context_length: int

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of the keys and values of one token."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize

    def empty(self, rows: int, capacity: int) -> FloatArray:
        """Return a cache for rows of at most `capacity` tokens."""
        return lazy_array((self.layers, 2, rows, self.heads, capacity, self.head_size), self.dtype)

    def grown(self, cache: FloatArray, lengths: list[int], rows: int, length: int, most_rows: int) -> FloatArray:
        """Return a cache with room for `rows` rows of `length` tokens, and with what another one holds.

        If that one has the room, it is returned itself. What grows at least doubles.

        Args:
            cache: The other one.
            lengths: How many tokens each of its rows in use holds.
            rows: How many rows are needed.
            length: How many tokens each of them can have.
            most_rows: How many rows will be needed at most.
        """
        old_rows, old_capacity = cache.shape[2], cache.shape[4]
        if rows <= old_rows and length <= old_capacity:
            return cache
        capacity = old_capacity
        if length > old_capacity:
            rounded = -(-max(length + CAPACITY_STEP, 2 * old_capacity) // CAPACITY_STEP) * CAPACITY_STEP
            capacity = min(rounded, self.context_length)
        if rows > old_rows:
            rows = max(rows, min(2 * old_rows, most_rows))
        grown = self.empty(max(rows, old_rows), capacity)
        for row, held in enumerate(lengths):
            # The last token of a sequence may have no place yet: it is computed next.
            end = min(held, old_capacity)
            grown[:, :, row, :, :end] = cache[:, :, row, :, :end]
        return grown
