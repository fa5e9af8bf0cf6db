"""A served model is asked one question when its server starts, so that /ping tells the truth."""

import sys
import time
import types

import pytest

from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.serving.app import SERVER_MODULE
from steps.wrappers.serving.health import health_check

DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64}


class _Engine:
    """An engine whose step raises as long as it has an error; otherwise every token is 5."""

    max_batch_size, cache_tokens = 4, None

    def __init__(self, error=None):
        self.error, self.steps, self._rows = error, 0, []

    def step(self, arriving):
        self.steps += 1
        if self.error:
            raise self.error
        self._rows += arriving
        return [(sequence, 5) for sequence in self._rows]

    def remove(self, sequences):
        self._rows = [sequence for sequence in self._rows if sequence not in sequences]

    def reset(self):
        self._rows = []


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setitem(sys.modules, SERVER_MODULE, types.ModuleType("app"))


@pytest.fixture(params=["chat", "prompt"])
def contract(request, tokenizer):
    return Contract(INTERFACES[request.param], tokenizer, tokenizer.context_length, DEFAULTS)


def test_a_model_that_answers_is_healthy(server, contract):
    engine = _Engine()
    assert health_check(contract, Scheduler(engine))()
    assert engine.steps == 1


def test_a_model_is_asked_only_where_it_is_served(contract):
    engine = _Engine()
    assert health_check(contract, Scheduler(engine))()
    assert engine.steps == 0


def test_a_model_whose_engine_fails_is_not_healthy_until_it_works(server, contract, caplog):
    engine = _Engine(RuntimeError("head_size shall be a multiple of 16"))
    is_healthy = health_check(contract, Scheduler(engine))
    assert not is_healthy()
    assert "The model does not answer" in caplog.text
    engine.error = None
    assert any(is_healthy() or time.sleep(0.01) for _ in range(3000))


def test_a_model_that_cannot_render_its_template_is_never_healthy(server, tokenizer, monkeypatch, caplog):
    def fail(messages):
        raise ValueError("unknown tag")

    monkeypatch.setattr(tokenizer, "encode_chat", fail)
    contract = Contract(INTERFACES["chat"], tokenizer, tokenizer.context_length, DEFAULTS)
    is_healthy = health_check(contract, Scheduler(_Engine()))
    assert not is_healthy()
    assert not is_healthy()
