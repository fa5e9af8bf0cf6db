"""What the torch engine computes in."""

import logging
from types import SimpleNamespace

import pytest
import torch

from steps.wrappers.engines import torch_engine
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
def test_bf16_is_computed_in_fp32_where_it_is_slow_and_memory_allows(
    monkeypatch, checkpoint, precision, has_bf16, memory, dtype
):
    monkeypatch.setattr(torch_engine, "_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch_engine, "_memory", lambda: memory)
    assert TorchEngine(str(checkpoint.directory), precision, 16, "cpu")._model.dtype == dtype


def test_a_container_may_have_less_memory_than_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(torch_engine.psutil, "virtual_memory", lambda: SimpleNamespace(total=ROOM))
    monkeypatch.setattr(torch_engine, "CONTAINER_LIMIT", tmp_path / "memory.max")
    assert torch_engine._memory() == ROOM
    for limit, memory in (("max\n", ROOM), (f"{NO_ROOM}\n", NO_ROOM), (f"{2 * ROOM}\n", ROOM)):
        (tmp_path / "memory.max").write_text(limit)
        assert torch_engine._memory() == memory


def test_it_says_that_bf16_will_be_slow(monkeypatch, checkpoint, caplog):
    monkeypatch.setattr(torch_engine, "_has_bf16", lambda: False)
    monkeypatch.setattr(torch_engine, "_memory", lambda: NO_ROOM)
    with caplog.at_level(logging.WARNING):
        TorchEngine(str(checkpoint.directory), "bf16", 16, "cpu")
    (said,) = [record.getMessage() for record in caplog.records if record.name == torch_engine.__name__]
    assert said.startswith("This processor computes bf16 slowly")
    assert "mode=onnx precision=int4" in said
