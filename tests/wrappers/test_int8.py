"""int8 weights: each row is exact for itself, and the model is close to the one that it was made from."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from steps.checkpoints import int8 as saving
from steps.config.paths import PROJECT
from steps.output import suppress_output
from steps.wrappers.engines import int8_linear as layers
from steps.wrappers.engines.int8_linear import int8_linear, quantize
from steps.wrappers.engines.int8_model import load_int8_model
from tests.modes.random_phi3 import random_phi3, saved_as_int8

CPU = torch.device("cpu")
IDS = torch.arange(3, 33).reshape(2, 15)


@pytest.fixture(params=[True, False], ids=["int8 products", "without int8 instructions"])
def kernel(request, monkeypatch):
    monkeypatch.setattr(layers, "multiplies_int8", lambda: request.param)


@pytest.fixture
def saved(checkpoint, tmp_path):
    """Return a function that makes a random checkpoint, saves it as int8, and returns both folders."""

    def save(**config):
        original = random_phi3(tmp_path / "original", checkpoint.directory, **config)
        return original, saved_as_int8(original, tmp_path / "int8")

    return save


def logits_of(model):
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def test_a_weight_is_at_most_half_a_step_off():
    torch.manual_seed(0)
    weights = torch.randn(30, 50) * torch.logspace(-6, 6, 30)[:, None]
    quantized, scales = quantize(weights)
    assert quantized.dtype == torch.int8
    assert ((quantized.float() * scales[:, None] - weights).abs() <= scales[:, None] * 0.501).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 5), (17, 33)])
def test_a_layer_is_close_to_the_original(kernel, shape, bias):
    torch.manual_seed(0)
    original = torch.nn.Linear(96, 130, bias=bias)
    rows = torch.randn(*shape, 96) * 10
    layer = int8_linear(*quantize(original.weight.detach()), original.bias.detach() if bias else None)
    with torch.inference_mode():
        expected, outputs = original(rows), layer(rows)
    assert outputs.shape == expected.shape
    assert (outputs - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "ALL"])
def test_a_layer_is_right_whatever_instructions_a_variable_forbids(instructions):
    """Rows and weights of the largest values: sums of two products saturate where an instruction is missing."""
    program = """if True:
        import torch
        from steps.wrappers.engines.int8_linear import int8_linear

        layer = int8_linear(torch.full((64, 256), 127, dtype=torch.int8), torch.ones(64), None)
        with torch.inference_mode():
            print([layer(torch.ones(rows, 256)).unique().tolist() for rows in (1, 4, 16, 64)])
        """
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([[256.0 * 127]] * 4)


def test_a_row_does_not_depend_on_the_others_of_its_batch():
    torch.manual_seed(0)
    layer = int8_linear(*quantize(torch.randn(256, 512)), None)
    # Rows of very different sizes: with one scale for all of them the small ones would vanish.
    rows = torch.randn(40, 1, 512) * torch.logspace(-4, 4, 40)[:, None, None]
    with torch.inference_mode():
        assert torch.equal(layer(rows), torch.cat([layer(row[None]) for row in rows]))


def test_a_row_of_zeros_stays_zeros(kernel):
    layer = int8_linear(*quantize(torch.zeros(32, 64)), None)
    with torch.inference_mode():
        assert torch.equal(layer(torch.zeros(3, 64)), torch.zeros(3, 32))


@pytest.mark.parametrize(
    "config",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"partial_rotary_factor": 0.5}],
    ids=["plain", "tied", "biased", "partly rotated"],
)
def test_a_model_is_close_to_the_one_that_it_was_made_from(kernel, saved, config):
    original, folder = saved(**config)
    with suppress_output():
        expected = logits_of(AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32))
    logits = logits_of(load_int8_model(str(folder), CPU))
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_shards_hold_the_same_tensors_as_one_file(saved, monkeypatch):
    _, folder = saved()
    expected = logits_of(load_int8_model(str(folder), CPU))
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "original")
    monkeypatch.setattr(saving, "SHARD_BYTES", 20_000)
    _, folder = saved()
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert torch.equal(logits_of(load_int8_model(str(folder), CPU)), expected)


def test_a_model_without_all_of_its_tensors_is_refused(saved, monkeypatch):
    monkeypatch.setattr(saving, "SHARD_BYTES", 20_000)
    _, folder = saved()
    max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size).unlink()
    with pytest.raises(ValueError, match=r"lacks .*weight"):
        load_int8_model(str(folder), CPU)


def test_a_model_for_a_gpu_has_bf16_weights(saved):
    original, folder = saved()
    with suppress_output():
        expected = logits_of(AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32))
    model = load_int8_model(str(folder), torch.device("cuda"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert (logits_of(model) - expected).norm() < 0.1 * expected.norm()
