"""What goes into a logged model: prompting in the chat template, precision, layout."""

import json

import pytest

from steps import command_line
from steps.checkpoints import staging
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import Model
from steps.errors import StepError
from steps.wrappers.tokenizer import ChatTokenizer

USER = {"role": "user", "content": "hi"}
NASTY = 'Say "yes" {{ 1 }} {% if %} \\ it\'s ü\n'


def _config(*overrides):
    return command_line.compose("build", list(overrides))


def _prompting(system, examples=()):
    from steps.config.schema import Example, Prompting

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
def test_prompting_is_in_the_chat_template(checkpoint, prompting, messages, expected):
    from transformers import AutoTokenizer

    config = _config()
    config.prompting = prompting
    with staging.staged(checkpoint, config) as folder:
        assert ChatTokenizer(folder).render(messages) == expected
        theirs = AutoTokenizer.from_pretrained(folder)
        assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected


def test_the_checkpoint_is_left_as_it_was(checkpoint):
    with staging.staged(checkpoint, _config("prompting=brief")) as folder:
        staged = folder
        assert (folder / "chat_template.jinja").read_text() != ""
    assert not staged.exists()
    assert resolve(Model(name="x", source="folder", path=str(checkpoint.directory))).sha256 == checkpoint.sha256


def test_bf16_is_half_as_large(checkpoint):
    with staging.staged(checkpoint, _config("precision=bf16")) as folder:
        narrow = (folder / "model.safetensors").stat().st_size
    assert narrow < 0.55 * (checkpoint.directory / "model.safetensors").stat().st_size


def test_remote_code_is_forgotten(checkpoint, tmp_path):
    import shutil

    source = shutil.copytree(checkpoint.directory, tmp_path / "source")
    (source / "phi3_manifest.json").unlink()
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "x.Y"}}
    (source / "config.json").write_text(json.dumps(config))
    with staging.staged(resolve(Model(name="x", source="folder", path=str(source))), _config()) as folder:
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert "auto_map" in json.loads((source / "config.json").read_text())


@pytest.mark.parametrize(("block_size", "accuracy_level"), [(32, 4), (64, 1)])
def test_int4_is_as_the_configuration_asks(checkpoint, block_size, accuracy_level):
    import onnx

    words = [f"precision.block_size={block_size}", f"precision.accuracy_level={accuracy_level}"]
    with staging.staged(checkpoint, _config("mode=onnx", "precision=int4", *words)) as folder:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes = [{entry.name: entry.i for entry in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
    assert {(node["block_size"], node["accuracy_level"], node["bits"]) for node in nodes} == {
        (block_size, accuracy_level, 4)
    }


def test_a_folder_in_genai_layout_is_for_onnx(checkpoint, tmp_path):
    import shutil

    with staging.staged(checkpoint, _config("mode=onnx", "precision=int4")) as folder:
        exported = shutil.copytree(folder, tmp_path / "exported")
    assert {"genai_config.json", "model.onnx", "tokenizer.json"} <= {file.name for file in exported.iterdir()}
    local = resolve(Model(name="local", source="folder", path=str(exported)))
    assert local.layout == "genai"
    with staging.staged(local, _config("mode=onnx", "precision=int4")) as folder:
        assert (folder / "model.onnx").is_file()
    with pytest.raises(StepError, match="are int4, got precision=fp32"):
        staging.staged(local, _config("mode=onnx")).__enter__()
    with pytest.raises(StepError, match="has ONNX GenAI layout, which is for mode=onnx, got mode=pyfunc"):
        staging.staged(local, _config()).__enter__()
