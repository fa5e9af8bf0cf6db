"""The whole context of a checkpoint with LongRoPE: beyond the short factors, answers are those of transformers."""

import numpy as np
import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.staging import link_checkpoint
from steps.config.schema import FolderModel
from steps.errors import StepError
from steps.modes.onnx_export import export_to_onnx
from steps.wrappers.tokenizer import ChatTokenizer
from tests.modes.random_phi3 import SIZES, generate, random_phi3, reference, without
from tests.modes.test_exactness import LIMITED, OLD_FORM, OPTIONS, _longrope

COUNT = 8
# All longer than the short factors' context of 48.
LENGTHS = (49, 60, 100)
FORMS = {
    "today's": {"rope_parameters": _longrope(), **LIMITED},
    "with an attention factor": {"rope_parameters": _longrope(attention_factor=1.5), **LIMITED},
    "partial": {"rope_parameters": _longrope(partial_rotary_factor=0.5), "hidden_size": 128, **LIMITED},
    "as published": {
        "change": without("rope_parameters", rope_scaling={"type": "su", **OLD_FORM}, rope_theta=5e3),
        **LIMITED,
    },
}


def _resolved(folder, long_context=True):
    return resolve(FolderModel(name="phi3", path=str(folder), long_context=long_context))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_both_engines_answer_long_prompts_as_transformers_does(checkpoint, tmp_path, form):
    from steps.wrappers.engines.onnx_engine import OnnxEngine
    from steps.wrappers.engines.torch_engine import TorchEngine

    source = random_phi3(tmp_path / "source", checkpoint.directory, **form)
    long = _resolved(source)
    assert ChatTokenizer(long.directory).context_length == 128
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 101, size=size).tolist() for size in LENGTHS]
    # By the checkpoint as it is: transformers takes its long factors by itself.
    staged = link_checkpoint(source, tmp_path / "staged")
    expected = [reference(staged, prompt, COUNT)[0] for prompt in prompts]
    (exported := tmp_path / "exported").mkdir()
    export_to_onnx(long.directory, exported, "fp32", OPTIONS)
    assert ChatTokenizer(exported).context_length == 128
    # This is what mode=transformers loads.
    assert [reference(long.directory, prompt, COUNT)[0] for prompt in prompts] == expected
    for engine in (TorchEngine(str(long.directory), "fp32", 16, "cpu"), OnnxEngine(str(exported), 16)):
        # The fourth prompt is short. The fifth one gets longer than 48 tokens while it is answered.
        together = generate(engine, [*prompts, prompts[0][:5], prompts[0][:44]], COUNT)
        assert [sequence.tokens for sequence in together[:3]] == expected
        alone = generate(engine, [prompts[0][:44]], COUNT)[0]
        assert alone.tokens == together[4].tokens


def test_it_is_a_checkpoint_of_its_own_which_shares_the_weights(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    source = random_phi3(tmp_path / "source", checkpoint.directory, **FORMS["today's"])
    short, long = _resolved(source, long_context=False), _resolved(source)
    assert short.sha256 != long.sha256
    assert {name for name in short.manifest if short.manifest[name] != long.manifest[name]} == {"config.json"}
    assert (long.directory / "model.safetensors").samefile(source / "model.safetensors")
    assert "-long" in command_line.variant_name(
        command_line.compose("build", ["model=local", f"model.path={source}", "model.long_context=true"])
    )


def test_the_shorter_context_is_said_once(checkpoint, tmp_path, capsys):
    source = random_phi3(tmp_path / "source", checkpoint.directory, **FORMS["today's"])
    for _ in range(2):
        _resolved(source, long_context=False)
    assert capsys.readouterr().out == (
        "The context of phi3 ends after 48 tokens, where its short factors do; model.long_context=true takes all 128, "
        "with the long factors for every prompt.\n"
    )
    _resolved(source)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_without_long_factors_is_refused(checkpoint, tmp_path):
    source = random_phi3(tmp_path / "source", checkpoint.directory)
    with pytest.raises(StepError) as refusal:
        _resolved(source)
    assert refusal.value.faults == (
        f"model.long_context=true needs a checkpoint with LongRoPE, and '{source}/config.json' has no long_factor: "
        "leave it out.",
    )


def test_an_export_is_refused(checkpoint, tmp_path):
    (exported := tmp_path / "exported").mkdir()
    export_to_onnx(checkpoint.directory, exported, "fp32", OPTIONS)
    (exported / "phi3_manifest.json").unlink()
    with pytest.raises(StepError, match=r"and '.*exported' is an export, which keeps its context: leave it out"):
        _resolved(exported)


def test_a_checkpoint_that_is_whole_already_stays_as_it_is(checkpoint, tmp_path):
    rope = {"rope_parameters": _longrope(), "original_max_position_embeddings": SIZES["max_position_embeddings"]}
    source = random_phi3(tmp_path / "source", checkpoint.directory, **rope)
    assert _resolved(source).sha256 == _resolved(source, long_context=False).sha256
