"""The type that the torch engine computes in."""

import logging
from types import SimpleNamespace

import pytest
import torch

from steps.wrappers.engines import torch_precision
from steps.wrappers.engines.torch_engine import TorchEngine

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
