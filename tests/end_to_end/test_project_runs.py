"""`mlflow run PROJECT` as users type it elsewhere: their folder, their names, their quotes."""

import os
import re
import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml

from tests.conftest import PROJECT

SYSTEM = "Sei höflich, “bitte”; it's 100% $HOME\nand {{question}}: 北京"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The user's folder, without an address of a store: MLflow makes one there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = tmp_path / "größe 1%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """The project under another path, so that its own folder stays as it is."""
    link = tmp_path / "the project"
    link.symlink_to(PROJECT)
    return link


def _mlflow_run(project, *words, **environment):
    command = ["mlflow", "run", str(project), "--env-manager", "local", *words]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.mark.slow
def test_a_project_is_run_from_the_users_folder(checkpoint, elsewhere, project):
    folders_before = set(PROJECT.iterdir())
    (elsewhere / "my checkpoint").symlink_to(checkpoint.directory)
    values = ("mode=onnx", "model=local", "model.path=my checkpoint", "generation.temperature= 0.5")
    words = ("-e", "build", "--run-name", "weekly check", "--experiment-name", "chosen")
    parameters = (word for value in (*values, f"prompting.system={SYSTEM}") for word in ("-P", value))
    _mlflow_run(project, *words, *parameters, MLFLOW_EXPERIMENT_NAME="another")

    client = mlflow.MlflowClient()
    chosen = client.get_experiment_by_name("chosen").experiment_id
    (run,) = client.search_runs([chosen])
    assert (run.info.run_name, run.info.status) == ("weekly check", "FINISHED")
    assert client.get_experiment_by_name("another") is None
    (model,) = client.search_logged_models([chosen])
    assert model.params["generation.temperature"] == "0.5"
    assert model.params["prompting.system"] == SYSTEM
    assert model.params["model.path"] == str(elsewhere / "my checkpoint")
    config = yaml.safe_load(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml"))
    assert config["prompting"]["system"] == SYSTEM
    # MLflow logged this before the step began, and no parameter can be changed.
    assert run.data.params["generation.temperature"] == "' 0.5'"

    (elsewhere / "my.jsonl").write_text('{"id": "1", "prompt": "Spain?", "target": "Madrid"}\n')
    words = ("-e", "evaluate", "--run-name", "bold-cat", "--experiment-name", "chosen")
    # A relative address starts in the user's folder as well.
    done = _mlflow_run(
        project,
        *words,
        *("-P", "prompt_set.path=my.jsonl", "-P", "evaluate.speed=false"),
        MLFLOW_TRACKING_URI="sqlite:///mlflow.db",
    )
    assert re.search(r"Scored local-onnx-fp32-chat-prompt-[0-9a-f]{4}-t0_5-p1: answer_match", done.stdout)
    assert {run.info.run_name for run in client.search_runs([chosen])} == {"weekly check", "bold-cat"}
    assert {path.name for path in elsewhere.iterdir()} == {"my checkpoint", "my.jsonl", "mlflow.db", "mlruns"}
    assert {path for path in set(PROJECT.iterdir()) - folders_before if "mlflow" in path.name} == set()
    assert Path("mlflow.db").resolve() == elsewhere / "mlflow.db"
