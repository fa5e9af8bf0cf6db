"""A key-value cache that new tokens are written into, where transformers' own copies all of it for every token."""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

# Columns that a layer's memory has to spare when it is made anew.
SPARE = 64


class GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, width, head size]; whoever cuts or joins them just sets them."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append new columns; returns all keys and values."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            # Empty at first: as they come, values are a part of a projection three times as large, which would stay.
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self.values = _appended(self.keys, key_states), _appended(self.values, value_states)
        return self.keys, self.values


def growing_cache() -> Cache:
    """An empty cache; its layers come with the first forward pass."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def _appended(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Both, side by side: in the memory of the old where it was made with room, else in new memory."""
    rows, heads, width, size = old.shape
    total = width + new.shape[2]
    # The room between two heads tells how many columns the memory has.
    in_room = old.storage_offset() == 0 and old.stride() == (heads * old.stride(1), old.stride(1), size, 1)
    if not in_room or old.stride(1) < total * size:
        room = old.new_empty(rows, heads, total + SPARE, size)
        room[:, :, :width] = old
        old = room[:, :, :width]
    whole = old.as_strided((rows, heads, total, size), old.stride())
    whole[:, :, width:] = new
    return whole
