"""The section that measures llama.cpp: its loop is right, and what it says without the packages."""

from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from steps.benchmarking import sections
from steps.benchmarking.checkpoint import SHAPES, write_checkpoint
from steps.benchmarking.sections.llama_cpp import Llama
from steps.checkpoints.configuration import load_config
from steps.config.benchmark import OPTIONAL, SECTIONS
from steps.modes.gguf_export import write_gguf
from tests.modes.exact_llama import NEEDS_LLAMA_CPP, exact_llama

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 1500}
PROMPTS = [[5, 9, 400, 22], [7], [30, 31, 32, 33, 34, 35, 36]]


def test_what_is_measured_only_if_it_is_asked_for_names_what_it_needs():
    modules = {name: vars(import_module(f"{sections.__name__}.{name}")) for name in (*SECTIONS, *OPTIONAL)}
    assert {name for name, module in modules.items() if {"PACKAGES", "PROGRAMS"} & set(module)} == set(OPTIONAL)


def test_a_missing_package_is_one_sentence(typed, monkeypatch):
    monkeypatch.setattr(sections, "is_installed", lambda package: False)
    done = typed("benchmark", "sections=[limits,llama_cpp]")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: The section llama_cpp needs what is not installed here: `pip install llama-cpp-python gguf`, and then "
        "`--env-manager local`.\n"
    )


@pytest.mark.parametrize("rows", [pytest.param(3, marks=NEEDS_LLAMA_CPP)])
def test_llama_cpp_answers_as_torch_does(tmp_path, rows):
    """Otherwise the speed of another model would be measured."""
    write_checkpoint(SHAPES["small"] | TINY, tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    expected = [
        model.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)[0, len(row) :] for row in PROMPTS
    ]
    write_gguf(tmp_path / "checkpoint", load_config(tmp_path / "checkpoint"), tmp_path / "model.gguf")
    with exact_llama(), Llama.loaded(tmp_path / "model.gguf", rows=rows, tokens=32) as llama:
        answers = llama.answer(PROMPTS, 12)
        again = llama.answer(PROMPTS[1:], 12)
    assert np.array_equal(answers, torch.stack(expected))
    assert again == answers[1:]
