"""The files of a logged model: prompting in the chat template, precision, layout."""

import json
import shutil

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import Example, FolderModel, Prompting
from steps.errors import StepError
from steps.modes import get_mode
from steps.wrappers.tokenizer import ChatTokenizer

USER = {"role": "user", "content": "hi"}
NASTY = 'Say "yes" {{ 1 }} {% if %} \\ it\'s ü\n'


def _config(*overrides):
    return command_line.compose("build", list(overrides))


def _staged(checkpoint, config):
    return get_mode(config.mode.name).stage(checkpoint, config)


def _prompting(system, examples=()):
    return Prompting("test", system, [Example(*example) for example in examples])


@pytest.mark.parametrize(
    ("prompting", "messages", "expected"),
    [
        (_prompting(""), [USER], "<|user|>\nhi<|end|>\n<|assistant|>\n"),
        (_prompting("Be brief."), [USER], "<|system|>\nBe brief.<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"),
        (
            _prompting("Be brief."),
            [{"role": "system", "content": "Mine."}, USER],
            "<|system|>\nMine.<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n",
        ),
        (
            _prompting("", [("a?", "b")]),
            [{"role": "system", "content": "Mine."}, USER],
            "<|system|>\nMine.<|end|>\n<|user|>\na?<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n",
        ),
        (_prompting(NASTY), [USER], f"<|system|>\n{NASTY}<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\n"),
    ],
    ids=["none", "system", "the conversation's own system", "examples", "hostile text"],
)
def test_prompting_is_written_into_the_chat_template(checkpoint, prompting, messages, expected):
    from transformers import AutoTokenizer

    config = _config()
    config.prompting = prompting
    with _staged(checkpoint, config) as folder:
        assert ChatTokenizer(folder).render(messages) == expected
        theirs = AutoTokenizer.from_pretrained(folder)
        assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected


def test_staging_leaves_the_checkpoint_unchanged(checkpoint):
    with _staged(checkpoint, _config("prompting=brief")) as folder:
        staged = folder
        assert (folder / "chat_template.jinja").read_text() != ""
    assert not staged.exists()
    assert resolve(FolderModel(name="x", path=str(checkpoint.directory))).sha256 == checkpoint.sha256


def test_bf16_halves_the_size_of_the_weights(checkpoint):
    with _staged(checkpoint, _config("precision=bf16")) as folder:
        narrow = (folder / "model.safetensors").stat().st_size
    assert narrow < 0.55 * (checkpoint.directory / "model.safetensors").stat().st_size


def test_references_to_remote_code_are_removed(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint.directory, tmp_path / "source")
    (source / "phi3_manifest.json").unlink()
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}
    (source / "config.json").write_text(json.dumps(config))
    with _staged(resolve(FolderModel(name="x", path=str(source))), _config()) as folder:
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert "auto_map" in json.loads((source / "config.json").read_text())


@pytest.mark.parametrize(("block_size", "accuracy_level"), [(32, 4), (64, 1)])
def test_block_size_and_accuracy_level_reach_the_graph(checkpoint, block_size, accuracy_level):
    import onnx

    words = [f"precision.block_size={block_size}", f"precision.accuracy_level={accuracy_level}"]
    with _staged(checkpoint, _config("mode=onnx", "precision=int4", *words)) as folder:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes = [{entry.name: entry.i for entry in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
    assert {(node["block_size"], node["accuracy_level"], node["bits"]) for node in nodes} == {
        (block_size, accuracy_level, 4)
    }


def test_a_folder_in_genai_layout_is_for_onnx_in_its_own_precision(checkpoint, tmp_path):
    with _staged(checkpoint, _config("mode=onnx", "precision=int4")) as folder:
        exported = shutil.copytree(folder, tmp_path / "exported")
    assert {"genai_config.json", "model.onnx", "tokenizer.json"} <= {file.name for file in exported.iterdir()}
    local = resolve(FolderModel(name="local", path=str(exported)))
    assert local.layout == "genai"
    with _staged(local, _config("mode=onnx", "precision=int4")) as folder:
        assert (folder / "model.onnx").is_file()
    with pytest.raises(StepError, match="are int4, got precision=fp32"):
        _staged(local, _config("mode=onnx")).__enter__()
    with pytest.raises(StepError, match="has ONNX GenAI layout, which is for mode=onnx, got mode=pyfunc"):
        _staged(local, _config()).__enter__()
