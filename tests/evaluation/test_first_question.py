"""A new model is loaded and asked one question before it becomes a variant."""

import logging

import mlflow
import pytest

from steps import build as build_step
from steps import command_line
from steps.build import build, fingerprint
from steps.checkpoints.cache import cached
from steps.errors import StepError, reason
from steps.store.variants import find_variants, logged_models
from tests.modes.random_phi3 import random_phi3, without

SIZES = {"vocab_size": 1500, "max_position_embeddings": 512, "original_max_position_embeddings": 512}


@pytest.fixture
def source(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))  # exports of random models are of no use later
    return lambda **config: random_phi3(tmp_path / "source", checkpoint.directory, **SIZES | config)


def _not_numbers(folder):
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor * float("nan") for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


UNUSABLE = {
    "template": ({}, _template("{% for x in %}"), "chat template"),
    "function of a template": ({}, _template("{{ nope(1) }}"), "'nope' is undefined"),
    "heads": ({"num_key_value_heads": 3}, None, "Error: "),
    "vocabulary": ({"vocab_size": 100}, None, "does not fit the model: "),
    "context": ({"max_position_embeddings": 4}, None, "context"),
    "weights that are not numbers": ({}, _not_numbers, "not finite numbers (lm_head.weight, "),
    "logits that are not numbers": ({"rms_norm_eps": -1.0}, None, "does not answer and was discarded: "),
}


@pytest.mark.parametrize("mode", ["pyfunc", "onnx"])
@pytest.mark.parametrize(("config", "damage", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_model_that_cannot_answer_is_discarded_with_its_cause(typed, source, mode, config, damage, words):
    folder = source(**config)
    if damage:
        damage(folder)
    done = typed("build", f"mode={mode}", "model=local", f"model.path={folder}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "cache" not in line.lower()
    assert "Built" not in done.stdout
    client = mlflow.MlflowClient()
    assert find_variants(client, "0") == []
    assert {str(model.status) for model in logged_models(client, "0")} <= {"FAILED"}
    assert {run.info.status for run in client.search_runs(["0"])} == {"FAILED"}


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_mlflows_flavour_reports_a_template_too(typed, source, interface):
    folder = source()
    (folder / "chat_template.jinja").write_text("{% for x in %}")
    done = typed("build", "mode=transformers", f"interface={interface}", "model=local", f"model.path={folder}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "chat template" in line


def test_check_false_builds_without_a_question(typed, source):
    folder = source(num_key_value_heads=3)
    assert typed("build", "model=local", f"model.path={folder}", "check=false").returncode == 0
    assert len(find_variants(mlflow.MlflowClient(), "0")) == 1


def test_a_model_for_another_machine_is_built_with_check_false(typed, source):
    words = ["build", "mode=onnx", "mode.execution_provider=cuda", "model=local", f"model.path={source()}"]
    done = typed(*words)
    assert done.returncode == 1
    assert "check=false builds it here for such a machine." in done.stderr
    assert typed(*words, "check=false").returncode == 0


def test_the_question_is_asked_before_the_model_is_a_variant(checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(
        build_step, "ask_first_question", lambda *_: seen.append(find_variants(mlflow.MlflowClient(), "0"))
    )
    build(command_line.compose("build", []), checkpoint)
    assert seen == [[]]
    assert len(find_variants(mlflow.MlflowClient(), "0")) == 1


def test_the_question_does_not_change_the_fingerprint(checkpoint):
    asked, unasked = (command_line.compose("build", [f"check={check}"]) for check in ("true", "false"))
    assert fingerprint(asked, checkpoint) == fingerprint(unasked, checkpoint)


def test_no_handler_is_left_behind(checkpoint):
    before = list(logging.root.handlers)
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    assert logging.root.handlers == before


def test_an_export_that_fails_is_not_a_fault_of_the_cache(typed, source, monkeypatch):
    from onnxruntime_genai.models import builder

    def fail(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "tokenizer.model")

    monkeypatch.setattr(builder, "create_model", fail)
    done = typed("build", "mode=onnx", "model=local", f"model.path={source()}")
    assert "cannot be exported to ONNX (FileNotFoundError: [Errno 2] No such file" in done.stderr
    assert "PHI3_CACHE_DIR" not in done.stderr


def test_a_folder_that_cannot_be_written_is_still_a_fault_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(StepError, match="set PHI3_CACHE_DIR to a writable folder"):
        cached("anything", lambda target: None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("rope"), "KeyError: rope"),
        (ValueError("two\n  lines."), "ValueError: two lines"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_of_an_error_is_one_line(error, words):
    assert reason(error) == words


def test_a_configuration_that_transformers_refuses_is_one_sentence(typed, source):
    done = typed("build", "model=local", f"model.path={source(change=without(hidden_act='nope'))}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
