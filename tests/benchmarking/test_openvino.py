"""The section that measures OpenVINO GenAI: it answers as torch does, and says in a sentence what is wrong."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from steps.benchmarking import sections
from steps.benchmarking.checkpoint import SHAPES, write_checkpoint
from steps.benchmarking.sections import openvino as openvino_section
from steps.benchmarking.sections.openvino import OpenVino, environment
from steps.errors import StepError
from tests.benchmarking.test_llama_cpp import PROMPTS, TINY

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture
def installed():
    """Skip unless uv can make the environment from what it has downloaded before: it downloads a gigabyte."""
    tried = subprocess.run([*environment("--offline"), "python", "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip("needs what `python -m steps.benchmark 'sections=[openvino]'` downloads")


def test_without_uv_the_section_is_refused(typed, monkeypatch):
    monkeypatch.setattr(sections.shutil, "which", lambda program: None)
    done = typed("benchmark", "sections=[limits,openvino]")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: The section openvino needs the program uv: `pip install uv`.\n"


@pytest.mark.service
def test_openvino_answers_as_torch_does(tmp_path, installed):
    """Otherwise the speed of another model would be measured."""
    write_checkpoint(SHAPES["small"] | TINY, tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    expected = [
        model.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False)[0, len(row) :].tolist()
        for row in PROMPTS
    ]
    with OpenVino.started(tmp_path / "checkpoint", tmp_path / "openvino", "fp32", EXACT) as openvino:
        assert openvino.answer(PROMPTS, 12) == expected
        assert openvino.answer(PROMPTS[1:], 12) == expected[1:]


@pytest.mark.service
def test_its_weights_are_packed(tmp_path, installed):
    """Otherwise the speed of bf16 would be called that of int4. Groups have 128 weights."""
    shape = SHAPES["small"] | TINY | {"hidden_size": 128, "intermediate_size": 256}
    write_checkpoint(shape, tmp_path / "checkpoint")
    with OpenVino.started(tmp_path / "checkpoint", tmp_path / "packed") as openvino:
        assert [len(row) for row in openvino.answer(PROMPTS, 12)] == [12] * len(PROMPTS)
    original = sum(file.stat().st_size for file in (tmp_path / "checkpoint").glob("*.safetensors"))
    assert (tmp_path / "packed" / "openvino_model.bin").stat().st_size < 0.6 * original


@pytest.mark.service
def test_what_openvino_cannot_do_is_one_sentence(tmp_path, installed):
    with (
        pytest.raises(StepError, match=r"^OpenVINO GenAI failed, in an environment with optimum-intel.*nowhere"),
        OpenVino.started(tmp_path / "nowhere", tmp_path / "openvino"),
    ):
        pass


def test_a_process_that_ended_is_one_sentence_too(tmp_path, monkeypatch):
    words = "import sys; print('{}', flush=True); sys.stdin.close(); sys.exit('it was killed')"
    monkeypatch.setattr(openvino_section, "environment", lambda: [sys.executable, "-c", words])
    with (
        pytest.raises(StepError, match=r"^OpenVINO GenAI failed, .*: it was killed$"),
        OpenVino.started(tmp_path, tmp_path / "openvino") as openvino,
    ):
        openvino.answer([[1] * 100_000], 1)
