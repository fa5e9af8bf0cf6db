"""The export for OpenVINO, and the cache of its engine. Exactness is in test_exactness.py."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from steps import command_line
from steps.checkpoints.configuration import load_config
from steps.checkpoints.staging import link_checkpoint
from steps.errors import StepError
from steps.modes import get_mode, openvino, openvino_export
from steps.modes.openvino_graph import ACTIVATIONS, phi3_graph
from steps.wrappers.engines.flat_engine import Token
from steps.wrappers.engines.openvino_engine import load
from steps.wrappers.engines.sequence import Sequence, Settings
from tests.conftest import PROJECT
from tests.end_to_end.test_disk_full import with_small_files
from tests.modes.random_phi3 import _NoEnd, generate, random_phi3, reference
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_that_of_transformers(engine, activation):
    staged, engine = engine(hidden_act=activation)
    prompt = prompts_of(101, 128)[-1]
    expected, logits = reference(staged, prompt, COUNT)
    assert generate(engine, [prompt], COUNT)[0].tokens == expected
    context = engine._context
    tokens = [Token(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    assert context.run(tokens)[0] == pytest.approx(logits[0], abs=1e-3)


def test_an_activation_that_openvino_lacks_is_refused(checkpoint, tmp_path):
    source = random_phi3(tmp_path / "source", checkpoint.directory, hidden_act="tanh")
    (tmp_path / "target").mkdir()
    with pytest.raises(StepError, match=r"hidden_act must be silu or .*, got 'tanh'\. Take another mode\.$"):
        openvino_export.export_to_openvino(source, tmp_path / "target", "int4")
    assert [*(tmp_path / "target").iterdir()] == []


def test_a_full_disk_is_known_as_one(checkpoint, monkeypatch, tmp_path):
    """OpenVINO says `iostream error` and nothing else."""
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    export = replace(openvino.EXPORT, write=with_small_files(openvino.EXPORT.write, 10_000))
    config = command_line.compose("build", ["mode=openvino"])
    before = {file.name: file.read_bytes() for file in checkpoint.directory.iterdir()}
    with pytest.raises(StepError, match=r"cannot be used \(File too large\)"), export.stage(checkpoint, config):
        pass
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == []
    # The export's folder has links to them.
    assert {file.name: file.read_bytes() for file in checkpoint.directory.iterdir()} == before


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
    prompt = prompts_of(101, 128)[-1]
    expected = reference(source, prompt, 1)[1][0]
    tokens = [Token(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    (logits,) = load(str(staged), 4)._context.run(tokens)
    likeness = np.corrcoef(logits, expected)[0, 1]
    least = {"fp32": 0.999999, "int8": 0.995, "int4_mixed": 0.9, "int4": 0.8}
    assert likeness > least[precision]


FORBIDDEN = """if True:
    import sys

    import numpy as np

    from steps.wrappers.engines.flat_engine import Token
    from steps.wrappers.engines.openvino_engine import load

    context = load(sys.argv[1], 4)._context
    np.save(sys.argv[2], context.run([Token(3 + place, place, 0, True) for place in range(20)]))
"""


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_logits_stay_near_if_a_variable_forbids_instructions_that_the_processor_has(checkpoint, tmp_path, precision):
    source = random_phi3(tmp_path / "source", checkpoint.directory)
    staged = link_checkpoint(source, tmp_path / "staged")
    openvino_export.export_to_openvino(source, staged, precision)
    logits = []
    for instructions in ("ALL", "AVX2"):
        file = tmp_path / f"{instructions}.npy"
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
        command = [sys.executable, "-W", "ignore", "-c", FORBIDDEN, str(staged), str(file)]
        subprocess.run(command, cwd=PROJECT, env=environment, check=True)
        logits.append(np.load(file))
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.995


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
    """Also if there is memory for one context only: a whole row, a beginning that is kept, and one that is computed."""
    from steps.wrappers.engines import openvino_context

    monkeypatch.setattr(openvino_context, "cache_tokens", lambda _: 128)
    _, engine = engine(rows=2)
    generate(engine, _prompts(2, 64), 1)
    assert engine.prefixes.kept_tokens == 64
    others = [[9, *prompt] for prompt in _prompts(2, 100)]
    (sequence,) = generate(engine, [others[0]], 128 - len(others[0]))
    assert len(sequence.prompt) + len(sequence.tokens) == 128
    generate(engine, [others[1]], 128 - len(others[1]))
    assert engine.prefixes.kept_tokens >= 64


def _balance(engine):
    """Return the blocks that are used more often than kept beginnings use them, and the number of lost ones."""
    pool = engine._context._pool
    kept = Counter(number for entry in engine._prefixes._entries.values() for number in entry.state.numbers)
    return pool._uses - kept, len(pool.memories[0]) - len(pool._free) - len(pool._uses)


@pytest.mark.parametrize("steps", range(1, 9))
def test_no_block_is_lost_when_rows_leave_early(engine, monkeypatch, steps):
    """While a beginning is computed, in the middle of a prompt, and in the middle of an answer."""
    _, engine = engine()
    monkeypatch.setattr(engine.admission, "longest", 24)
    rows = [Sequence(prompt, Settings(0.0, 1.0, 0, 9), _NoEnd()) for prompt in _prompts(4, 70)]
    engine.step(rows)
    for _ in range(steps):
        for row, token in engine.step([]):
            row.push(token)
    assert _balance(engine)[1] == 0
    for row in rows:
        row.cancel()
    engine.remove(rows)
    engine.step([])
    assert _balance(engine) == ({}, 0)


@pytest.mark.parametrize("passes", range(6))
def test_no_block_is_lost_when_a_pass_fails(engine, monkeypatch, passes):
    staged, engine = engine()
    monkeypatch.setattr(engine.admission, "longest", 24)
    request, calls = engine._context._request, []

    class Failing:
        def __getattr__(self, name):
            return getattr(request, name)

        def infer(self):
            calls.append(1)
            if len(calls) > passes:
                raise RuntimeError("out of luck")
            request.infer()

    prompts = _prompts(4, 70)
    with monkeypatch.context() as patch:
        patch.setattr(engine._context, "_request", Failing())
        with pytest.raises(RuntimeError, match="out of luck"):
            generate(engine, prompts, 9)
    engine.reset()
    assert _balance(engine) == ({}, 0)
    assert generate(engine, prompts[:1], COUNT)[0].tokens == reference(staged, prompts[0], COUNT)[0]


def test_keys_of_8_bits_hardly_depend_on_how_they_were_written(checkpoint, tmp_path):
    """In pieces, one by one, and in a copied block: those of a block share scales."""
    source = random_phi3(tmp_path / "source", checkpoint.directory)
    staged = link_checkpoint(source, tmp_path / "staged")
    openvino_export.export_to_openvino(source, staged, "int8")
    context = load(str(staged), 4)._context
    prompt = prompts_of(101, 128)[-1]

    def run(sequence, start, end):
        last = len(prompt) - 1
        return context.run([Token(prompt[place], place, sequence, place == last) for place in range(start, end)])

    def after(sequence, *cuts):
        return [run(sequence, *part) for part in pairwise((*cuts, len(prompt)))][-1][0]

    whole = after(0, 0)
    run(1, 0, 40)
    context.restore(2, context.state(1), 40)
    others = after(3, 0, 40), after(4, 0, *range(40, 60)), after(2, 40)
    assert min(np.corrcoef(whole, other)[0, 1] for other in others) > 0.995


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
