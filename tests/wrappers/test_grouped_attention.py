"""Attention of one token where heads share keys and values."""

import itertools

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.phi3.modeling_phi3 import eager_attention_forward

from steps.wrappers.engines import grouped_attention
from steps.wrappers.engines.grouped_attention import FEWEST_KEYS, attend

SIZE = 16


class Layer(torch.nn.Module):
    """What transformers' function asks of a layer."""

    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def arrays(rows, shared, groups, keys, dtype=torch.float32, queries=1):
    """Query, key and value as the engine has them: keys and values in memory with spare columns."""
    generator = torch.Generator().manual_seed(rows + keys)
    query = torch.randn(rows, queries, shared * groups, SIZE, generator=generator).transpose(1, 2)
    memory = torch.randn(2, rows, shared, keys + 5, SIZE, generator=generator).to(dtype)
    return query.to(dtype), memory[0][:, :, :keys], memory[1][:, :, :keys]


def padded(rows, keys):
    """Each row has one more column of padding on the left than the one before it."""
    return (torch.arange(keys) >= torch.arange(rows)[:, None])[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "keys"), [(1, FEWEST_KEYS), (1, 300), (5, 40), (16, 131)])
@pytest.mark.parametrize(("shared", "groups"), [(1, 4), (3, 3), (2, 8)])
def test_it_gives_what_torch_gives(monkeypatch, dtype, rows, keys, shared, groups):
    query, key, value = arrays(rows, shared, groups, keys, dtype)
    layer = Layer(groups)
    masks = (padded(rows, keys),) if dtype == torch.float32 else (None, padded(rows, keys))
    for mask, scaling in itertools.product(masks, (None, 0.3)):
        expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
        with monkeypatch.context() as patch:
            patch.setattr(grouped_attention, "sdpa_attention_forward", None)
            given, weights = attend(layer, query, key, value, mask, scaling=scaling)
        assert weights is None
        assert given.shape == expected.shape
        assert given.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_is_all_padding_so_far_stays_finite(dtype):
    query, key, value = arrays(4, 2, 4, 50, dtype)
    mask = torch.zeros(4, 1, 1, 50, dtype=torch.bool)
    mask[1:] = True
    given, _ = attend(Layer(4), query, key, value, mask)
    assert given.isfinite().all()
    assert torch.equal(given[1:], attend(Layer(4), query[1:], key[1:], value[1:], mask[1:])[0])


def test_likely_keys_in_bf16_are_as_exact_as_in_transformers():
    """Its own attention without torch's kernel: a softmax in fp32 over products in bf16."""
    query, key, value = arrays(4, 2, 4, 200)
    query = 10 * query
    exact = sdpa_attention_forward(Layer(4), query, key, value, None)[0]
    bf16 = [states.bfloat16() for states in (query, key, value)]
    ours = attend(Layer(4), *bf16, None)[0]
    theirs = eager_attention_forward(Layer(4).eval(), *bf16, None, scaling=SIZE**-0.5)[0]
    errors = [float((given - exact).abs().mean()) for given in (ours, theirs)]
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize(
    ("shared", "groups", "keys", "queries", "is_masked"),
    [(4, 1, 300, 1, True), (2, 2, 300, 7, True), (2, 2, FEWEST_KEYS - 1, 1, True), (2, 2, 300, 1, False)],
)
def test_the_rest_is_left_to_transformers(monkeypatch, shared, groups, keys, queries, is_masked):
    asked = []
    monkeypatch.setattr(grouped_attention, "sdpa_attention_forward", lambda *words, **more: asked.append((words, more)))
    query, key, value = arrays(1, shared, groups, keys, queries=queries)
    mask = padded(1, keys) if is_masked else None
    attend(Layer(groups), query, key, value, mask, scaling=0.5, dropout=0.0, sliding_window=9)
    ((_, more),) = asked
    assert more == {"scaling": 0.5, "dropout": 0.0, "sliding_window": 9}
