"""Rows that the torch engine runs together, padded on the left to the same width."""

from typing import cast

import torch
from transformers import Cache

from .growing_cache import GrowingLayer, growing_cache, joined
from .sequence import Sequence

# Keys and values [heads, length, head size] of every layer.
State = list[tuple[torch.Tensor, torch.Tensor]]


class TorchBatch:
    """Row r of the key-value cache [rows, heads, width, head size] holds its sequence in its last columns.

    The mask [rows, width] marks which.
    """

    def __init__(self, rows: list[Sequence], cache: Cache, mask: torch.Tensor) -> None:
        self.rows, self.cache, self.mask = rows, cache, mask

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return int(self.mask.shape[1])

    def padding_with(self, other: "TorchBatch") -> int:
        """Return how many columns, of all rows together, another batch and this one would add to each other."""
        width = max(self.width, other.width)
        return len(self.rows) * (width - self.width) + len(other.rows) * (width - other.width)

    def join(self, other: "TorchBatch") -> None:
        """Append the rows of another batch."""
        width = max(self.width, other.width)
        self.rows += other.rows
        self.mask = torch.cat([_pad_left(self.mask, width), _pad_left(other.mask, width)])
        for ours, theirs in zip(layers(self.cache), layers(other.cache), strict=True):
            ours.keys = joined(ours.keys, theirs.keys)
            ours.values = joined(ours.values, theirs.values)

    def cut(self, columns: int) -> None:
        """Forget the last columns of every row."""
        width = self.width - columns
        self.mask = self.mask[:, :width]
        for layer in layers(self.cache):
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]

    def drop(self, sequences: list[Sequence]) -> None:
        """Drop rows, and the columns that no remaining row uses. One row at least remains."""
        keep = [row for row, sequence in enumerate(self.rows) if sequence not in sequences]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[row] for row in keep]
        index = torch.tensor(keep, device=self.mask.device)
        mask = self.mask[index]
        first = int(mask.any(dim=0).int().argmax())
        self.mask = mask[:, first:].contiguous()
        for layer in layers(self.cache):
            layer.keys = layer.keys[index, :, first:].contiguous()
            layer.values = layer.values[index, :, first:].contiguous()


def layers(cache: Cache) -> list[GrowingLayer]:
    """Return the layers of a growing cache."""
    return cast("list[GrowingLayer]", cache.layers)


def cache_of(states: list[State | None], lengths: list[int], columns: int) -> Cache:
    """Return a cache that holds the first tokens of a state in each row, padded on the left to the longest.

    It has memory for as many columns in all.
    """
    cache, width = growing_cache(columns), max(lengths)
    example = next(state for state in states if state)
    for layer, (keys, _) in enumerate(example):
        heads, _, size = keys.shape
        memory = keys.new_zeros(2, len(states), heads, width, size)
        for row, (state, length) in enumerate(zip(states, lengths, strict=True)):
            if state and length:
                for kind, values in enumerate(state[layer]):
                    memory[kind, row, :, width - length :] = values[:, :length]
        cache.layers.append(GrowingLayer.of(memory[0], memory[1], columns))
    return cache


def _pad_left(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Pad a mask [rows, columns] on the left with False to `width`."""
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0), value=False)
