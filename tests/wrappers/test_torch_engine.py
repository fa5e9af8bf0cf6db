"""The type that the torch engine computes in."""

import logging
from types import SimpleNamespace

import pytest
import torch

from steps.wrappers.engines import torch_precision
from steps.wrappers.engines.torch_engine import FAST_PASS, TorchEngine, _pass_cost

ROOM, NO_ROOM = 2**40, 2**20


@pytest.mark.parametrize(
    ("precision", "has_bf16", "memory", "dtype"),
    [
        ("fp32", True, ROOM, torch.float32),
        ("fp32", False, NO_ROOM, torch.float32),
        ("bf16", True, ROOM, torch.bfloat16),
        ("bf16", False, ROOM, torch.float32),
        ("bf16", False, NO_ROOM, torch.bfloat16),
    ],
)
def test_bf16_becomes_fp32_if_it_is_slow_and_memory_allows(monkeypatch, checkpoint, precision, has_bf16, memory, dtype):
    monkeypatch.setattr(torch_precision, "has_native_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch_precision, "total_memory", lambda: memory)
    assert TorchEngine(str(checkpoint.directory), precision, 16, "cpu").model.dtype == dtype


def test_memory_limit_of_a_container_is_respected(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_precision.psutil, "virtual_memory", lambda: SimpleNamespace(total=ROOM))
    monkeypatch.setattr(torch_precision, "CONTAINER_LIMIT", tmp_path / "memory.max")
    assert torch_precision.total_memory() == ROOM
    for limit, memory in (("max\n", ROOM), (f"{NO_ROOM}\n", NO_ROOM), (f"{2 * ROOM}\n", ROOM)):
        (tmp_path / "memory.max").write_text(limit)
        assert torch_precision.total_memory() == memory


def test_slow_bf16_is_logged_as_a_warning(monkeypatch, checkpoint, caplog):
    monkeypatch.setattr(torch_precision, "has_native_bf16", lambda: False)
    monkeypatch.setattr(torch_precision, "total_memory", lambda: NO_ROOM)
    with caplog.at_level(logging.WARNING):
        TorchEngine(str(checkpoint.directory), "bf16", 16, "cpu")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == torch_precision.__name__]
    assert warning.startswith("This processor computes bf16 slowly")
    assert "mode=onnx precision=int4" in warning


@pytest.mark.parametrize(
    ("precision", "device", "amx", "cost"),
    [
        ("int8", "cpu", True, FAST_PASS),
        ("bf16", "cpu", True, FAST_PASS),
        ("fp32", "cpu", True, 0),  # no matrix unit computes fp32
        ("int8", "cpu", False, 0),
        ("fp32", "cuda", False, FAST_PASS),
    ],
)
def test_a_pass_costs_more_than_its_tokens_where_products_are_fast(monkeypatch, precision, device, amx, cost):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": amx})
    assert _pass_cost(precision, torch.device(device)) == cost


def test_a_pass_over_prompts_is_short_on_a_cpu(checkpoint):
    admission = TorchEngine(str(checkpoint.directory), "fp32", 4, "cpu").admission
    assert (admission.longest, admission.together) == (256, 2048)
