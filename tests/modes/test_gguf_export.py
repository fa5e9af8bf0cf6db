"""mode=llama_cpp gives what transformers gives, over the same table of configurations as the other engines.

Needs `pip install llama-cpp-python gguf`.
"""

import json

import numpy as np
import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.configuration import load_config
from steps.checkpoints.staging import link_checkpoint
from steps.config.schema import FolderModel
from steps.errors import StepError
from steps.modes import get_mode, gguf_export
from steps.wrappers.tokenizer import ChatTokenizer
from tests.modes.exact_llama import NEEDS_LLAMA_CPP, exact_llama
from tests.modes.random_phi3 import generate, random_phi3, reference
from tests.modes.test_exactness import CONFIGS, COUNT, prompts_of

REFUSED = {
    "heads of their own size": "its heads together must be as wide as the model, got 4 heads of 32 and a model of 64",
    "gelu": "hidden_act must be 'silu', got 'gelu'",
    "relu": "hidden_act must be 'silu', got 'relu'",
}


@pytest.fixture
def engine(checkpoint, tmp_path):
    """Return a checkpoint's folder, the folder of its file, and the engine, with all bits of the weights."""

    def make(**config):
        from steps.wrappers.engines.llama_cpp_engine import load

        source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
        staged, exported = link_checkpoint(source, tmp_path / "staged"), link_checkpoint(source, tmp_path / "exported")
        gguf_export.write_gguf(source, load_config(source), exported / gguf_export.FILE)
        gguf_export.end_context(load_config(source), exported / "config.json")
        return staged, exported, load(str(exported), 16)

    with exact_llama():
        yield make


def with_marks(names):
    return [pytest.param(CONFIGS[name], id=name, marks=NEEDS_LLAMA_CPP) for name in names if name not in REFUSED]


@pytest.mark.parametrize("config", with_marks(CONFIGS))
def test_llama_cpp_gives_what_transformers_gives(engine, monkeypatch, config):
    from steps.wrappers.engines import flat_engine

    monkeypatch.setattr(flat_engine, "PREFILL_TOKENS", 40)  # so that the longest prompt is prefilled in pieces
    staged, exported, engine = engine(**config)
    prompts = prompts_of(config.get("vocab_size", 101), ChatTokenizer(exported).context_length)
    expected = [reference(staged, prompt, COUNT)[0] for prompt in prompts]
    alone = [generate(engine, [prompt], COUNT)[0].tokens for prompt in prompts]
    together = [sequence.tokens for sequence in generate(engine, prompts, COUNT)]
    assert alone == together == expected
    if prompts:
        *others, first = generate(engine, [*prompts[1:], prompts[0]], COUNT, late=4)
        assert [sequence.tokens for sequence in (first, *others)] == expected


@pytest.mark.parametrize("window", [pytest.param(16, marks=NEEDS_LLAMA_CPP), pytest.param(200, marks=NEEDS_LLAMA_CPP)])
def test_the_context_ends_at_the_sliding_window(engine, window):
    staged, exported, _ = engine(sliding_window=window)
    before, after = (ChatTokenizer(folder).context_length for folder in (staged, exported))
    assert (before, after) == (128, min(128, window))


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_computes_in_another_way_is_refused(checkpoint, tmp_path, name):
    source = random_phi3(tmp_path / "source", checkpoint.directory, **CONFIGS[name])
    (tmp_path / "target").mkdir()
    with pytest.raises(StepError, match=REFUSED[name]):
        gguf_export.export_to_gguf(source, tmp_path / "target", "int4")
    assert [*(tmp_path / "target").iterdir()] == []


DTYPES = {"float64": "F32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=NEEDS_LLAMA_CPP) for dtype in DTYPES])
def test_every_stored_type_is_written_exactly(checkpoint, tmp_path, dtype):
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import load_file

    source = random_phi3(tmp_path / "source", checkpoint.directory, dtype=getattr(torch, dtype))
    gguf_export.write_gguf(source, load_config(source), tmp_path / "model.gguf")
    written = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    head, norm = written["output.weight"], written["output_norm.weight"]
    assert (head.tensor_type.name, norm.tensor_type.name) == (DTYPES[dtype], "F32")
    stored = load_file(source / "model.safetensors")
    assert len(written) == len(stored)
    for tensor, name in ((head, "lm_head.weight"), (norm, "model.norm.weight")):
        assert np.array_equal(dequantize(tensor.data, tensor.tensor_type), stored[name].float().numpy())


@pytest.mark.parametrize("rows", [pytest.param(rows, marks=NEEDS_LLAMA_CPP) for rows in (1, 5)])
def test_the_cache_grows_and_gives_its_memory_back(engine, monkeypatch, rows):
    """Also in the middle of answers, and while beginnings are kept that several prompts share."""
    from steps.wrappers.engines import llama_context

    monkeypatch.setattr(llama_context, "FIRST_CELLS", 32)
    monkeypatch.setattr(llama_context, "CELL_STEP", 1)
    staged, _, engine = engine()
    shared = prompts_of(101, 128)[-1][:40]
    prompts = [[*shared, *range(5, 6 + row)] for row in range(rows)]
    expected = [reference(staged, prompt, 20)[0] for prompt in prompts]
    for _ in range(2):
        assert [sequence.tokens for sequence in generate(engine, prompts, 20)] == expected
        assert engine._context._cells == 32
    if rows > 1:
        assert engine.prefixes.kept_tokens == 32


@pytest.mark.parametrize("precision", [pytest.param(name, marks=NEEDS_LLAMA_CPP) for name in gguf_export.KINDS])
def test_every_precision_is_built_and_answers(checkpoint, precision, tmp_path):
    config = command_line.compose("build", ["mode=llama_cpp", f"precision={precision}"])
    with get_mode("llama_cpp").stage(checkpoint, config) as folder:
        from steps.wrappers.engines.llama_cpp_engine import load

        manifest = json.loads((folder / "phi3_manifest.json").read_text())
        assert "model.gguf" in manifest
        assert not [name for name in manifest if "safetensors" in name]
        (sequence,) = generate(load(str(folder), 4), [[5, 6, 7]], 5)
    assert len(sequence.tokens) == 5


def test_a_folder_with_a_gguf_file_of_its_own_is_no_part_of_other_modes(checkpoint, tmp_path):
    folder = link_checkpoint(checkpoint.directory, tmp_path / "own")
    (folder / "other.gguf").write_bytes(b"GGUF")
    own = resolve(FolderModel(name="own", path=str(folder)))
    with get_mode("pyfunc").stage(own, command_line.compose("build", ["mode=pyfunc"])) as staged:
        assert not [*staged.glob("*.gguf")]


def test_without_its_packages_the_mode_says_what_to_install(typed, monkeypatch):
    from steps.modes import mode

    monkeypatch.setattr(mode, "is_installed", lambda package: package != "gguf")
    done = typed("build", "mode=llama_cpp", "precision=int4")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: mode=llama_cpp needs packages that are not installed here: `pip install gguf`, and then "
        "`--env-manager local`.\n"
    )
