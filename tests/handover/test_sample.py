"""docs/sample.md: the four topics of the upstream sample, as the real models show them."""

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from steps import command_line
from tests.conftest import PROJECT, SPAIN
from tests.handover.conftest import VARIANTS, commands
from tests.support import enter_store

PAGE = (PROJECT / "docs" / "sample.md").read_text()
# Heading → text below it.
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)\n", PAGE, flags=re.M)[1:])] * 2, strict=True))
ORDER = ["option 1", "option 2", "chat"]


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.S)


@pytest.fixture
def printed(store, model_of, caches, monkeypatch):
    """Return a function that runs a block of the page on a variant and returns what it prints."""

    def run(code, name):
        uri = f"models:/{model_of(name)}"
        enter_store(monkeypatch, store, caches)
        monkeypatch.setenv("MODEL", uri)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, {})
        return output.getvalue()

    return run


def test_every_topic_of_the_sample_has_its_section():
    assert list(SECTIONS) == [
        "Option 1: MLflow's transformers flavour",
        "Option 2: a custom wrapper",
        "Signatures of both",
        "Inference with the MLflow runtime",
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_the_command_of_an_option_builds_the_variant_that_is_shown(number):
    (section,) = [name for name in SECTIONS if name.startswith(f"Option {number}")]
    (command,) = blocks(section, "sh")
    typed = command_line.compose("build", re.findall(r"-P (\S+)", command))
    assert typed == command_line.compose("build", VARIANTS[f"option {number}"])


def test_option_1_is_mlflows_flavour_with_the_chat_task(folder_of):
    flavours = yaml.safe_load(Path(folder_of("option 1"), "MLmodel").read_text())["flavors"]
    assert flavours["transformers"]["inference_task"] == "llm/v1/chat"
    assert flavours["python_function"]["loader_module"] == "mlflow.transformers"
    config = flavours["python_function"]["config"]
    assert config == {"max_new_tokens": 256, "include_prompt": False, "truncation": True, "do_sample": False}


def test_option_2_is_a_python_model_from_code_on_onnx_runtime(folder_of):
    folder = Path(folder_of("option 2"))
    flavour = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavour["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert (folder / Path(flavour["model_code_path"]).name).is_file()
    assert [file.name for file in folder.rglob("*.pkl")] == []
    assert "onnxruntime-genai==" in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("name", ORDER)
def test_the_signature_on_the_page_is_printed_by_the_model(name, printed):
    (code,) = blocks("Signatures of both", "python")
    shown = blocks("Signatures of both", "text")
    assert len(shown) == len(ORDER)
    assert printed(code, name) == shown[ORDER.index(name)]


@pytest.mark.parametrize("name", ["option 1", "option 2"])
def test_the_answer_on_the_page_is_the_models(name, printed):
    place = ORDER.index(name)
    code = blocks("Inference with the MLflow runtime", "python")[place]
    shown = blocks("Inference with the MLflow runtime", "text")[place]
    assert printed(code, name) == shown


def test_the_script_of_the_cloud_asks_both(folder_of, monkeypatch, capsys):
    """docs/azure.md has the rest of the fourth topic."""

    def asked(name):
        monkeypatch.setattr(sys, "argv", ["score.py", folder_of(name), SPAIN])
        runpy.run_path(str(PROJECT / "docs" / "azure" / "score.py"), run_name="__main__")
        return json.loads(capsys.readouterr().out)

    assert asked("option 2") == "The capital of Spain is Madrid."
    (completion,) = asked("option 1")
    assert completion["choices"][0]["message"]["content"] == asked("option 2")
    assert "(azure.md)" in SECTIONS["Inference with the MLflow runtime"]


def test_the_page_serves_the_champion_as_the_other_pages_do():
    others = (PROJECT / "README.md").read_text() + (PROJECT / "docs" / "serving.md").read_text()
    assert all(command in others for command in commands("sample.md", "mlflow models serve", "curl"))
