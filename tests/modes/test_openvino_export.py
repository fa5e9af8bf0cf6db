"""mode=openvino gives what transformers gives, over the same table of configurations as the other engines."""

import os
import subprocess
import sys

import numpy as np
import pytest

from steps import command_line
from steps.checkpoints.configuration import load_config
from steps.checkpoints.disk_space import explain_full_disk
from steps.checkpoints.staging import link_checkpoint
from steps.errors import StepError
from steps.modes import get_mode, openvino_export
from steps.modes.openvino_graph import ACTIVATIONS, phi3_graph
from steps.wrappers.engines.openvino_engine import load
from steps.wrappers.tokenizer import ChatTokenizer
from tests.conftest import PROJECT
from tests.end_to_end.test_disk_full import with_small_files
from tests.modes.random_phi3 import generate, random_phi3, reference
from tests.modes.test_exactness import CONFIGS, COUNT, prompts_of


@pytest.fixture
def engine(checkpoint, tmp_path):
    """Return a checkpoint's folder and the engine, with all bits of the weights."""

    def make(rows=16, **config):
        source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
        staged = link_checkpoint(source, tmp_path / "staged")
        openvino_export.export_to_openvino(source, staged, "fp32")
        return staged, load(str(staged), rows)

    return make


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])
def test_openvino_gives_what_transformers_gives(engine, monkeypatch, config):
    from steps.wrappers.engines import flat_engine

    monkeypatch.setattr(flat_engine, "PREFILL_TOKENS", 40)  # so that the longest prompt is prefilled in pieces
    staged, engine = engine(**config)
    prompts = prompts_of(config.get("vocab_size", 101), ChatTokenizer(staged).context_length)
    expected = [reference(staged, prompt, COUNT)[0] for prompt in prompts]
    alone = [generate(engine, [prompt], COUNT)[0].tokens for prompt in prompts]
    together = [sequence.tokens for sequence in generate(engine, prompts, COUNT)]
    assert alone == together == expected
    if prompts:
        *others, first = generate(engine, [*prompts[1:], prompts[0]], COUNT, late=4)
        assert [sequence.tokens for sequence in (first, *others)] == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_that_of_transformers(engine, activation):
    staged, engine = engine(hidden_act=activation)
    prompt = prompts_of(101, 128)[-1]
    expected, logits = reference(staged, prompt, COUNT)
    assert generate(engine, [prompt], COUNT)[0].tokens == expected
    context = engine._context
    from steps.wrappers.engines.flat_engine import Token

    tokens = [Token(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    assert context.run(tokens)[0] == pytest.approx(logits[0], abs=1e-3)


def test_an_activation_that_openvino_lacks_is_refused(checkpoint, tmp_path):
    source = random_phi3(tmp_path / "source", checkpoint.directory, hidden_act="tanh")
    (tmp_path / "target").mkdir()
    with pytest.raises(StepError, match=r"hidden_act must be silu or .*, got 'tanh'\. Take another mode\.$"):
        openvino_export.export_to_openvino(source, tmp_path / "target", "int4")
    assert [*(tmp_path / "target").iterdir()] == []


def test_a_full_disk_is_known_as_one(checkpoint, tmp_path):
    """OpenVINO says `iostream error` and nothing else."""
    source = random_phi3(tmp_path / "source", checkpoint.directory)
    (tmp_path / "target").mkdir()
    with pytest.raises(StepError, match=r"is full: the model needs 1\.0 MB"), explain_full_disk(1_000_000):
        with_small_files(openvino_export.export_to_openvino, 10_000)(source, tmp_path / "target", "fp32")


DTYPES = {"float64": "f32", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stored_type_is_written_exactly(checkpoint, tmp_path, dtype):
    import torch
    from safetensors.torch import load_file

    source = random_phi3(tmp_path / "source", checkpoint.directory, dtype=getattr(torch, dtype))
    stored = load_file(source / "model.safetensors")
    with phi3_graph(source, load_config(source)) as graph:
        constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
        head = next(node for node in constants if [*node.shape] == [*stored["lm_head.weight"].shape])
        written = np.array(head.get_data(dtype=np.float32))
        assert head.get_element_type().get_type_name() == DTYPES[dtype]
    expected = [stored[name].float().numpy() for name in ("lm_head.weight", "model.embed_tokens.weight")]
    assert any(np.array_equal(written, weights) for weights in expected)


@pytest.mark.parametrize("precision", openvino_export.KINDS)
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": True}, CONFIGS["odd sizes"]], ids=str)
def test_every_precision_is_near_to_fp32(checkpoint, tmp_path, precision, config):
    source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
    staged = link_checkpoint(source, tmp_path / "staged")
    openvino_export.export_to_openvino(source, staged, precision)
    from steps.wrappers.engines.flat_engine import Token

    prompt = prompts_of(101, 128)[-1]
    expected = reference(source, prompt, 1)[1][0]
    tokens = [Token(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    (logits,) = load(str(staged), 4)._context.run(tokens)
    likeness = np.corrcoef(logits, expected)[0, 1]
    least = {"fp32": 0.999999, "int8": 0.995, "int4_mixed": 0.9, "int4": 0.8}
    assert likeness > least[precision]


def test_few_bits_are_few_bytes(checkpoint, tmp_path):
    sizes = {}
    source = random_phi3(tmp_path / "source", checkpoint.directory, hidden_size=256, intermediate_size=512)
    for precision in openvino_export.KINDS:
        (tmp_path / precision).mkdir()
        openvino_export.export_to_openvino(source, tmp_path / precision, precision)
        sizes[precision] = (tmp_path / precision / "model.weights").stat().st_size
    assert sizes["int4"] < sizes["int4_mixed"] < sizes["int8"] < sizes["fp32"] / 3.5


def test_the_mode_stages_the_graph_without_the_checkpoint_weights(checkpoint):
    config = command_line.compose("build", ["mode=openvino", "precision=int4"])
    with get_mode("openvino").stage(checkpoint, config) as folder:
        names = {file.name for file in folder.iterdir()}
        (sequence,) = generate(load(str(folder), 4), [[5, 6, 7]], 5)
    assert {"model.xml", "model.weights", "tokenizer.json", "phi3_manifest.json"} <= names
    assert not [name for name in names if "safetensors" in name]
    assert len(sequence.tokens) == 5


def test_packing_sends_nothing_over_the_network():
    """NNCF would report its use. What it looks at is what it reads when it is imported."""
    code = """
from steps.modes.openvino_export import _packed
import openvino, numpy as np
from openvino import opset13 as op
entry = op.parameter([-1, 64], np.float32)
graph = openvino.Model([op.matmul(entry, op.constant(np.ones((64, 64), np.float32)), False, True)], [entry])
_packed(graph, mode="int8_sym")
from nncf.telemetry import telemetry
print(type(telemetry).__name__)
"""
    free = {key: value for key, value in os.environ.items() if key not in ("NNCF_CI", "NNCF_DEV", "CI")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=free, capture_output=True, text=True, check=True
    )
    assert done.stdout == "MagicMock\n"


def _prompts(rows, length):
    shared = (prompts_of(101, 128)[-1] * 3)[:length]
    return [[*shared, *range(5, 6 + row)] for row in range(rows)]


@pytest.mark.parametrize("length", [32, 40, 64])
def test_a_shared_beginning_stands_in_the_same_blocks(engine, length):
    """Also where it ends in the middle of a block of 32 tokens."""
    staged, engine = engine()
    prompts = _prompts(5, length)
    expected = [reference(staged, prompt, 12)[0] for prompt in prompts]
    for _ in range(2):
        assert [sequence.tokens for sequence in generate(engine, prompts, 12)] == expected
    kept = length // 16 * 16
    assert engine.prefixes.kept_tokens == kept
    pool = engine._context._pool
    assert {*pool._uses.values()} == {1}
    assert len(pool._uses) == -(-kept // 32)
    engine._prefixes._entries.clear()
    assert not pool._uses


def test_memory_is_given_back_when_the_batch_is_over(engine):
    staged, engine = engine(hidden_size=256, head_dim=128, max_position_embeddings=128)
    pool = engine._context._pool
    prompt = prompts_of(101, 128)[-1]
    for first in (5, 25):
        # No two begin alike, so nothing is kept.
        generate(engine, [[row, *prompt] for row in range(first, first + 16)], 20)
        assert (pool._uses, pool._written) == ({}, set())
        assert not any(np.any(memory) for memory in pool.memories)
    expected = reference(staged, prompt, COUNT)[0]
    assert generate(engine, [prompt], COUNT)[0].tokens == expected


def test_more_memory_for_beginnings_than_there_is_is_no_fault(engine, tmp_path):
    staged, engine = engine()
    assert load(str(staged), 256, prefix_cache_mb=2**20)._prefixes._max_tokens > engine._prefixes._max_tokens


def test_there_is_a_block_for_every_sequence(engine, monkeypatch):
    """Also if hardly any memory is free: one sequence of the whole context, and the beginning of one."""
    from steps.wrappers.engines import openvino_context

    monkeypatch.setattr(openvino_context, "cache_tokens", lambda _: 1)
    _, engine = engine(rows=2)
    (sequence,) = generate(engine, [prompts_of(101, 128)[-1]], 60)
    assert len(sequence.tokens) == 60
    assert [len(row.tokens) for row in generate(engine, _prompts(2, 100), 20)] == [20, 20]


ROWS = {(256, 512): 128, (192, 512): 64, (96, 512): 32, (80, 512): 32}


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("sizes", ROWS, ids=str)
def test_as_many_numbers_share_a_scale_as_divide_every_row(checkpoint, tmp_path, sizes, precision):
    hidden, intermediate = sizes
    source = random_phi3(tmp_path / "source", checkpoint.directory, hidden_size=hidden, intermediate_size=intermediate)
    staged = link_checkpoint(source, tmp_path / "staged")
    openvino_export.export_to_openvino(source, staged, precision)
    group = load(str(staged), 4)._context._properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"]
    assert group == (ROWS[sizes] if precision == "int8" else 32)
