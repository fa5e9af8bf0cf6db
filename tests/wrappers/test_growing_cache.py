"""The growing cache holds the same values as transformers' own cache."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from steps.wrappers.engines.growing_cache import SPARE, growing_cache
from steps.wrappers.engines.torch_batch import TorchBatch, layers

HEADS, SIZE = 3, 4
MOST_ROWS = 6


def _states(rows, width):
    """Return states in the layout of a model: the heads of a token are adjacent."""
    return torch.randn(rows, width, HEADS, SIZE).transpose(1, 2)


def _padded(states, width):
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _cache(rows, width):
    cache = growing_cache()
    cache.update(keys := _states(rows, width), 2 * keys, 0)
    return cache


class _Pair:
    """A growing cache, and what transformers' own cache would hold."""

    def __init__(self, rows):
        self.cache, self.theirs = _cache(rows, 5), DynamicCache()
        (layer,) = self.cache.layers
        self.theirs.update(layer.keys.clone(), layer.values.clone(), 0)

    @property
    def rows(self):
        return len(self.theirs.layers[0].keys)

    @property
    def width(self):
        return self.theirs.layers[0].keys.shape[2]

    def append(self, width):
        new = _states(self.rows, width)
        keys, values = self.cache.update(new, 2 * new, 0)
        for ours, theirs in zip((keys, values), self.theirs.update(new, 2 * new, 0), strict=True):
            assert torch.equal(ours, theirs)

    def cut(self, columns):
        self.cache.layers[0].cut(columns)
        self._replace(lambda states: states[:, :, : self.width - columns])

    def keep(self, rows, columns):
        self.cache.layers[0].keep(rows, columns)
        self._replace(lambda states: states[rows, :, -columns:])

    def join(self, rows, width):
        other = _cache(rows, width).layers[0]
        self.cache.layers[0].join(other, MOST_ROWS)
        widest, (layer,) = max(width, self.width), self.theirs.layers
        layer.keys, layer.values = (
            torch.cat([_padded(ours, widest), _padded(more, widest)])
            for ours, more in ((layer.keys, other.keys), (layer.values, other.values))
        )

    def check(self):
        (ours,), (theirs,) = self.cache.layers, self.theirs.layers
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert self.cache.get_seq_length() == self.theirs.get_seq_length()

    def _replace(self, change):
        (layer,) = self.theirs.layers
        layer.keys, layer.values = change(layer.keys), change(layer.values)


def _worst_memory(like, *shape):
    """Return what newly allocated memory may hold."""
    return like.new_full(shape, torch.nan)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@mock.patch.object(torch.Tensor, "new_empty", _worst_memory)
def test_appending_cutting_dropping_and_joining_gives_the_same_as_transformers_cache(data):
    pair = _Pair(data.draw(st.integers(1, 4)))
    for action in data.draw(st.lists(st.sampled_from(["append", "append", "cut", "keep", "join"]), max_size=16)):
        if action == "append":
            pair.append(data.draw(st.sampled_from([1, 1, 1, SPARE])))
        elif action == "cut":
            pair.cut(data.draw(st.integers(0, min(3, pair.width - 1))))
        elif action == "keep":
            count = data.draw(st.integers(1, pair.rows))
            order = data.draw(st.permutations(range(count, pair.rows)))
            rows = [data.draw(st.sampled_from([row, *order[row : row + 1]])) for row in range(count)]
            pair.keep(rows, data.draw(st.integers(1, pair.width)))
        elif pair.rows < MOST_ROWS:
            pair.join(data.draw(st.integers(1, MOST_ROWS - pair.rows)), data.draw(st.integers(1, 2 * pair.width)))
        pair.check()


@pytest.mark.parametrize("rows", [1, 4])
def test_memory_is_reused_until_the_spare_columns_are_full(rows):
    cache = _cache(rows, 5)
    addresses = {cache.layers[0].keys.data_ptr()}
    for _ in range(SPARE):
        cache.update(new := _states(rows, 1), new, 0)
        addresses.add(cache.layers[0].keys.data_ptr())
    assert len(addresses) == 1
    cache.update(new, new, 0)
    assert cache.layers[0].keys.data_ptr() not in addresses


def test_projection_that_the_values_are_a_view_of_is_freed():
    """Values are a view of one projection of queries, keys and values, which must not stay alive."""
    cache, projection = growing_cache(), torch.randn(2, 5, 3 * HEADS * SIZE)
    keys, values = (part.unflatten(2, (HEADS, SIZE)).transpose(1, 2) for part in projection.split(HEADS * SIZE, 2)[1:])
    cache.update(keys, values, 0)
    memory = cache.layers[0].values.untyped_storage()
    assert memory.data_ptr() != projection.untyped_storage().data_ptr()
    assert memory.nbytes() == 2 * 2 * HEADS * (5 + SPARE) * SIZE * 4
    assert torch.equal(cache.layers[0].values, values)


def test_rows_that_come_and_go_leave_the_others_where_they_are():
    """A finished row's place is taken by the last one, and a new one comes after it."""
    batch = _batch(4, 5)
    batch.join(_batch(1, 3), MOST_ROWS)
    (layer,) = layers(batch.cache)
    place, last = layer.keys.data_ptr(), layer.keys[-1].clone()
    first, second, *others = batch.rows
    batch.drop([second])
    assert batch.rows == [first, others[-1], *others[:-1]]
    assert torch.equal(layer.keys[1], last)
    batch.join(_batch(2, 4), MOST_ROWS)
    assert (len(batch.rows), batch.width, layer.keys.data_ptr()) == (6, 5, place)


@pytest.mark.parametrize(("kept", "columns"), [(1, 40), (8, 8)])
def test_memory_is_given_back_when_most_of_it_is_not_needed(kept, columns):
    layer = _cache(8, 40).layers[0]
    before = layer.keys.untyped_storage().nbytes()
    layer.keep(list(range(kept)), columns)
    assert layer.keys.untyped_storage().nbytes() < before


def _batch(rows, width):
    return TorchBatch([object() for _ in range(rows)], _cache(rows, width), torch.ones(rows, width, dtype=torch.bool))
