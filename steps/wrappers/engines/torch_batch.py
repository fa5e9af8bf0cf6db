"""Rows that the torch engine runs together, padded on the left to the same width."""

from typing import cast

import torch
from transformers import Cache

from .growing_cache import GrowingLayer, growing_cache
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

    def join(self, other: "TorchBatch", most_rows: int) -> None:
        """Append the rows of another batch. There will be `most_rows` rows at most."""
        width = max(self.width, other.width)
        self.rows += other.rows
        self.mask = torch.cat([_pad_left(self.mask, width), _pad_left(other.mask, width)])
        for ours, theirs in zip(layers(self.cache), layers(other.cache), strict=True):
            ours.join(theirs, most_rows)

    def cut(self, columns: int) -> None:
        """Forget the last columns of every row."""
        self.mask = self.mask[:, : self.width - columns]
        for layer in layers(self.cache):
            layer.cut(columns)

    def drop(self, sequences: list[Sequence]) -> None:
        """Drop rows, and the columns that no remaining row uses. One row at least remains.

        The last rows take the places of those that are dropped, so that no other row moves.
        """
        kept = [row for row, sequence in enumerate(self.rows) if sequence not in sequences]
        if len(kept) == len(self.rows):
            return
        moving = [row for row in kept if row >= len(kept)]
        kept = [row if row in kept else moving.pop() for row in range(len(kept))]
        self.rows = [self.rows[row] for row in kept]
        mask = self.mask[kept]
        self.mask = mask[:, int(mask.any(dim=0).int().argmax()) :].contiguous()
        for layer in layers(self.cache):
            layer.keep(kept, self.width)


def layers(cache: Cache) -> list[GrowingLayer]:
    """Return the layers of a growing cache."""
    return cast("list[GrowingLayer]", cache.layers)


def cache_of(states: list[State | None], lengths: list[int], columns: int) -> Cache:
    """Return a cache that holds the first tokens of a state in each row, padded on the left to the longest.

    It has memory for as many columns in all.
    """
    cache, width = growing_cache(columns), max(lengths)
    example = next(state for state in states if state)
    for number, (keys, _) in enumerate(example):
        layer = GrowingLayer.empty(keys, len(states), width, columns)
        for row, (state, length) in enumerate(zip(states, lengths, strict=True)):
            known = state[number] if state else (keys[:, :0], keys[:, :0])
            for all_rows, values in zip((layer.keys, layer.values), known, strict=True):
                all_rows[row, :, : width - length] = 0
                all_rows[row, :, width - length :] = values[:, :length]
        cache.layers.append(layer)
    return cache


def _pad_left(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Pad a mask [rows, columns] on the left with False to `width`."""
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0), value=False)
