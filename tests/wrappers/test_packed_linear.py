"""Packed linear layers compute the same as torch's own."""

import weakref

import pytest
import torch

from steps.wrappers.engines import packed_linear
from steps.wrappers.engines.packed_linear import PackedLinear, pack

LARGE = (1024, packed_linear.MIN_WEIGHTS // 1024)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 5), (17, 33)])
def test_packed_layer_computes_the_same_as_the_original(bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 130, bias=bias)
    rows = torch.randn(*shape, 96)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(layer)(rows), layer(rows))


def test_row_does_not_depend_on_other_rows_of_the_batch():
    torch.manual_seed(0)
    rows, packed = torch.randn(40, 1, 512), PackedLinear(torch.nn.Linear(512, 256))
    with torch.inference_mode():
        torch.testing.assert_close(packed(rows), torch.cat([packed(row[None]) for row in rows]))


def test_large_layers_are_packed_at_any_depth_and_small_ones_are_not():
    small, large, inner = torch.nn.Linear(8, 8), torch.nn.Linear(*LARGE), torch.nn.Linear(*LARGE, bias=False)
    model = torch.nn.Sequential(small, large, torch.nn.Sequential(torch.nn.SiLU(), inner))
    pack(model)
    assert model[0] is small
    assert [type(layer) for layer in (model[1], model[2][1])] == [PackedLinear, PackedLinear]


def test_subclass_of_linear_is_not_packed():
    class Doubled(torch.nn.Linear):
        def forward(self, rows):
            return 2 * super().forward(rows)

    model = torch.nn.Sequential(Doubled(*LARGE))
    pack(model)
    assert type(model[0]) is Doubled


def test_nothing_is_packed_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(*LARGE))
    pack(model)
    assert type(model[0]) is torch.nn.Linear


def test_old_weights_are_freed_layer_by_layer(monkeypatch):
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(*LARGE)) for _ in range(4)))
    weights = [weakref.ref(inner[0].weight) for inner in model]
    alive = []

    class Counted(PackedLinear):
        def __init__(self, linear):
            alive.append(sum(weight() is not None for weight in weights))
            super().__init__(linear)

    monkeypatch.setattr(packed_linear, "PackedLinear", Counted)
    pack(model)
    # The loop may still refer to the layer before.
    assert len(alive) == 4
    assert alive[-1] <= 2
