"""What is particular to the torch engine on a GPU. Other tests run on it too, where there is one (`tests/gpu.py`)."""

import numpy as np
import pytest
import torch

from steps.checkpoints.staging import link_checkpoint
from steps.wrappers.engines import torch_engine
from steps.wrappers.engines.torch_engine import TorchEngine
from tests.gpu import NEEDS_GPU
from tests.modes.random_phi3 import generate, random_phi3, saved_as_int8

pytestmark = NEEDS_GPU

# Of a mean logit, by precision. Of int8, the CPU rounds what is multiplied with the weights too.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.2}
LENGTHS, COUNT = (1, 7, 60, 100, 33), 6


@pytest.fixture
def folder(checkpoint, tmp_path):
    """Return a function that makes a random checkpoint for a precision."""

    def make(precision, **config):
        source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
        if precision != "int8":
            return link_checkpoint(source, tmp_path / "staged")
        return saved_as_int8(source, tmp_path / "int8")

    return make


@pytest.fixture
def first_logits(monkeypatch):
    """Return the logits that the first token of each sequence was chosen by."""
    recorded, choose = {}, torch_engine.choose_tokens

    def choose_and_record(sequences, best, row_logits):
        for row, sequence in enumerate(sequences):
            recorded.setdefault(sequence, np.array(row_logits(row)))
        return choose(sequences, best, row_logits)

    monkeypatch.setattr(torch_engine, "choose_tokens", choose_and_record)
    return recorded


@pytest.mark.parametrize("config", [{}, {"sliding_window": 16}], ids=str)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_rows_of_a_batch_are_near_to_what_the_cpu_computes_alone(folder, first_logits, monkeypatch, precision, config):
    """Prompts are computed in pieces, some of which are padding alone in the rows of short prompts."""
    staged, random = folder(precision, **config), np.random.default_rng(0)
    prompts = [random.integers(3, 1200, size=size).tolist() for size in LENGTHS]
    on_cpu = TorchEngine(str(staged), "fp32" if precision == "bf16" else precision, 16, "cpu")
    expected = [first_logits[generate(on_cpu, [prompt], 1)[0]] for prompt in prompts]
    monkeypatch.setattr(torch_engine, "PREFILL_TOKENS", 40)
    monkeypatch.setattr(torch_engine, "groups_in_turn", lambda arrivals, _, spare: [arrivals])
    on_gpu = TorchEngine(str(staged), precision, 16, "cuda")
    assert {parameter.device.type for parameter in on_gpu.model.parameters()} == {"cuda"}
    for sequences in (generate(on_gpu, prompts, COUNT), [generate(on_gpu, [each], COUNT)[0] for each in prompts]):
        for sequence, theirs in zip(sequences, expected, strict=True):
            difference = np.abs(first_logits[sequence] - theirs).mean()
            assert difference <= TOLERANCE[precision] * np.abs(theirs).mean()


def test_each_length_of_the_keys_has_the_same_attention(checkpoint):
    """cuDNN's would be prepared anew for each length."""
    TorchEngine(str(checkpoint.directory), "bf16", 16, "cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_auto_takes_the_gpu_and_rows_take_a_share_of_its_memory(checkpoint):
    engine = TorchEngine(str(checkpoint.directory), "bf16", 16, "auto")
    assert engine.model.device.type == "cuda"
    free, total = torch.cuda.mem_get_info()
    config = engine.model.config
    size = config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * size * 2
    assert 0.3 * free < engine.cache_tokens * bytes_per_token < 0.45 * total
