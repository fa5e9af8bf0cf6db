"""Folders in ONNX GenAI layout: what cannot run is refused, what the model builder left out is corrected."""

import contextlib
import io
import os
import shutil
from tempfile import TemporaryDirectory

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel
from steps.errors import StepError
from steps.modes import get_mode
from steps.modes.onnx_graph import folder_faults
from steps.wrappers.tokenizer import ChatTokenizer
from tests.modes.random_phi3 import edit_json, generate, random_phi3, reference

PROMPTS = [list(range(3, 3 + length)) for length in (2, 20, 34)]
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONGROPE = {"rope_type": "longrope", "type": "longrope", "rope_theta": 1e4, **FACTORS}


def _built(source, target, precision="fp32", provider="cpu", options=()):
    """Export with the builder alone, as its command does."""
    from onnxruntime_genai.models import builder

    with (
        TemporaryDirectory() as cache,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        arguments = ("", str(source), str(target), precision, provider, cache)
        given = ["hf_remote=false", "hf_token=false", *options]
        builder.create_model(*arguments, **builder.parse_extra_options(*arguments, given))
    return target


def _staged(folder):
    return get_mode("onnx").stage(
        resolve(FolderModel(name="local", path=str(folder))), command_line.compose("build", ["mode=onnx"])
    )


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return _built(random_phi3(folder / "source", checkpoint.directory), folder / "built")


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "folder")


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, 128),
        ({"sliding_window": 8}, 128),
        ({"rope_parameters": LONGROPE, "original_max_position_embeddings": 48}, 48),
    ],
    ids=["plain", "window", "LongRoPE"],
)
def test_a_folder_of_the_builder_is_corrected_in_the_staged_copy(checkpoint, tmp_path, config, context):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
    built = _built(source, tmp_path / "built")
    before = {file.name: file.read_bytes() for file in built.iterdir()}
    with _staged(built) as staged:
        assert ChatTokenizer(staged).context_length == context
        sequences = generate(OnnxEngine(str(staged), 16), PROMPTS, 10)
    assert [entry.tokens for entry in sequences] == [reference(source, prompt, 10)[0] for prompt in PROMPTS]
    assert {file.name: file.read_bytes() for file in built.iterdir()} == before


def _config(edit):
    return lambda folder: edit_json(folder / "genai_config.json", edit)


FAULTS = {
    "another file name": (
        _config(lambda config: config["model"]["decoder"].update(filename="decoder.onnx")),
        "names the graph 'decoder.onnx', and the folder has no such file",
    ),
    "a file elsewhere": (
        _config(lambda config: config["model"]["decoder"].update(filename="../built/model.onnx")),
        "names the graph '../built/model.onnx', and",
    ),
    "whisper": (
        _config(lambda config: config["model"].update(type="whisper", encoder={})),
        "a model of type 'whisper' with the parts decoder, encoder: only type 'phi3'",
    ),
    "vision": (
        _config(lambda config: config["model"].update(type="phi3v", vision={}, embedding={})),
        "type 'phi3v' with the parts decoder, embedding, vision",
    ),
    "pipeline": (
        _config(lambda config: config["model"].update(type="decoder-pipeline", decoder={"pipeline": []})),
        "type 'decoder-pipeline' with the parts decoder, pipeline",
    ),
    "no model": (_config(lambda config: config.pop("model")), "is not a valid configuration (KeyError: model)"),
    "no context": (_config(lambda config: config["model"].pop("context_length")), "(KeyError: context_length)"),
    "weights missing": (
        lambda folder: (folder / "model.onnx.data").unlink(),
        "has its weights in model.onnx.data, and the folder has no such file",
    ),
    "weights cut short": (lambda folder: os.truncate(folder / "model.onnx.data", 100), "model.onnx.data is cut short"),
    "no graph": (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), "is not a graph that onnx can read"),
}


@pytest.mark.parametrize(("damage", "words"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_cannot_run_is_refused_by_its_cause(folder, damage, words):
    damage(folder)
    with pytest.raises(StepError) as refusal:
        _staged(folder).__enter__()
    (sentence,) = refusal.value.faults
    assert words in sentence


@pytest.mark.parametrize(
    ("provider", "options"),
    [("cuda", []), ("cpu", ["exclude_embeds=true"]), ("cpu", ["exclude_lm_head=true"])],
    ids=["another attention", "no embedding", "no head"],
)
def test_a_graph_that_cannot_be_batched_on_a_cpu_is_refused(checkpoint, tmp_path, provider, options):
    source = random_phi3(tmp_path / "source", checkpoint.directory)
    built = _built(source, tmp_path / "built", provider=provider, options=options)
    (fault,) = folder_faults(built, on_gpu=False)
    assert "cannot be batched on a CPU" in fault
    assert folder_faults(built, on_gpu=True) == []
