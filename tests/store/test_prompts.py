"""Prompts and registered models share one table of names in MLflow, and do not meet in it."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.config.schema import Prompting
from steps.errors import StepError
from steps.promotion import registry
from steps.store import prompts


def test_a_prompt_is_called_as_no_registered_model_may_be():
    name = prompts.prompt_name(Prompting("few_shot"))
    assert name == "phi3.prompting.few_shot"
    with pytest.raises(StepError, match=r"registered_model must not begin with 'phi3\.prompting\.'"):
        command_line.check("register", [[f"registered_model={name}"]])


@pytest.mark.parametrize("name", ["phi3-plain", "phi3-few_shot"])
def test_a_model_may_have_the_name_that_a_prompt_had_in_earlier_versions(checkpoint, name):
    """Before, such a model kept the prompting from being built."""
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    build(command_line.compose("build", ["mode=onnx", f"prompting={name.removeprefix('phi3-')}"]), checkpoint)
    assert registry.read(client, name).versions == ()


@pytest.mark.parametrize("words", [("register",), ("register", "action=history"), ("main", "variants=[[mode=onnx]]")])
def test_the_name_of_a_prompt_is_refused_before_anything_is_done(typed, words):
    mlflow.genai.register_prompt("phi3-plain", "as earlier versions did")
    done = typed(*words, "registered_model=phi3-plain")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: registered_model must not be the name of a prompt, got 'phi3-plain': MLflow gives a name only once. "
        "Choose another one: -P registered_model=…\n"
    )
    assert mlflow.genai.load_prompt("prompts:/phi3-plain/1").template == "as earlier versions did"


def test_a_build_is_refused_at_once_if_a_model_has_the_name_of_its_prompt(typed):
    mlflow.MlflowClient().create_registered_model("phi3.prompting.plain")
    done = typed("build", "mode=onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The prompt phi3.prompting.plain cannot be registered, because there is a registered")
    assert not mlflow.MlflowClient().search_runs(["0"])


BUILDS = 4


def test_builds_that_register_a_prompt_at_the_same_moment_get_the_same_version(monkeypatch):
    """All of them see that there is none, and then register it."""
    client = mlflow.MlflowClient()
    runs = [client.create_run("0").info.run_id for _ in range(BUILDS)]
    models = [client.create_logged_model("0", source_run_id=run).model_id for run in runs]
    barrier, waited = threading.Barrier(BUILDS), threading.local()
    look = prompts._first_version

    def look_together(*arguments):
        found = look(*arguments)
        if not hasattr(waited, "once"):
            waited.once = barrier.wait(60)
        return found

    monkeypatch.setattr(prompts, "_first_version", look_together)
    # It redirects the output of the process, and these are threads.
    monkeypatch.setattr(prompts, "suppress_output", contextlib.nullcontext)
    with ThreadPoolExecutor(BUILDS) as pool:
        linked = list(pool.map(lambda *build: prompts.link(Prompting("text"), *build), models, runs))
    assert linked == ["prompts:/phi3.prompting.text/1"] * BUILDS
    assert mlflow.genai.load_prompt(linked[0]).template == [prompts.QUESTION]
