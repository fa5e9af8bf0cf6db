"""The growing cache holds the same values as transformers' own cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from steps.wrappers.engines.growing_cache import SPARE, growing_cache, joined

HEADS, SIZE = 3, 4


def _states(rows, width):
    """Return states in the layout of a model: the heads of a token are adjacent."""
    return torch.randn(rows, width, HEADS, SIZE).transpose(1, 2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_appending_cutting_and_joining_gives_the_same_as_transformers_cache(data):
    ours, theirs = growing_cache(), DynamicCache()
    rows = data.draw(st.integers(1, 4))
    ours.update(keys := _states(rows, 5), keys, 0)
    theirs.update(keys, keys, 0)
    for action in data.draw(st.lists(st.sampled_from(["append", "append", "cut", "join"]), max_size=12)):
        layers = ours.layers[0], theirs.layers[0]
        if action == "append":
            new = _states(rows, data.draw(st.sampled_from([1, 1, 1, SPARE])))
            assert torch.equal(ours.update(new, 2 * new, 0)[1], theirs.update(new, 2 * new, 0)[1])
        elif action == "cut":
            keep = torch.tensor(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
            rows = len(keep)
            for layer in layers:
                layer.keys, layer.values = (states[keep, :, 1:].contiguous() for states in (layer.keys, layer.values))
        else:
            more, rows = _states(1, layers[0].keys.shape[2]), rows + 1
            for layer in layers:
                layer.keys, layer.values = (torch.cat([states, more]) for states in (layer.keys, layer.values))
        assert torch.equal(layers[0].keys, layers[1].keys)
        assert torch.equal(layers[0].values, layers[1].values)
        assert ours.get_seq_length() == theirs.get_seq_length()


@pytest.mark.parametrize("rows", [1, 4])
def test_memory_is_reused_until_the_spare_columns_are_full(rows):
    cache = growing_cache()
    cache.update(keys := _states(rows, 5), keys, 0)
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
    assert memory.nbytes() == 2 * HEADS * (5 + SPARE) * SIZE * 4
    assert torch.equal(cache.layers[0].values, values)


@pytest.mark.parametrize(("width", "other"), [(3, 3), (2, 5), (5, 2)])
def test_rows_are_joined_in_memory_that_can_grow(width, other):
    """Shorter ones get zeros on their left, and what is appended next is written in place."""
    one, more = _states(2, width), _states(3, other)
    both = joined(one, more)
    most = max(width, other)
    padded = [torch.nn.functional.pad(states, (0, 0, most - states.shape[2], 0)) for states in (one, more)]
    assert torch.equal(both, torch.cat(padded))
    cache = growing_cache()
    cache.update(_states(5, 1), _states(5, 1), 0)
    layer = cache.layers[0]
    layer.keys, layer.values = both, joined(one, more)
    new = _states(5, 1)
    keys, _ = cache.update(new, new, 0)
    assert keys.data_ptr() == both.data_ptr()
    assert torch.equal(keys, torch.cat([both, new], dim=2))
