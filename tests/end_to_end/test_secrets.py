"""Secrets of the environment and of addresses are found in nothing that the steps write."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest

from steps.redaction import redacted
from steps.store import runs

CANARY = "canary7f3a"
SECRETS = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "OPENAI_API_KEY",
    "DATABRICKS_TOKEN",
)


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Canaries in the environment, a store and a cache that nobody else writes to; → the folders that are written."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"{CANARY}-{name.lower()}")
    # Not what the other worker is making there at this moment.
    fleeting = shutil.ignore_patterns("journals", "*.making-*", "*.lock")
    shutil.copytree(os.environ["PHI3_CACHE_DIR"], tmp_path / "cache", ignore=fleeting)
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "secrets")
    mlflow.create_experiment("secrets", artifact_location=str(tmp_path / "files"))
    return tmp_path


def _leaks(folder: Path) -> list[str]:
    """The files under a folder that hold a canary."""
    found = [file for file in folder.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    return [str(file) for file in found]


def test_secrets_of_the_environment_are_written_nowhere(checkpoint, planted, typed):
    steps = [
        typed("build", "mode=onnx"),
        typed("evaluate", "evaluate.speed=false"),
        typed("register"),
        typed("build", "model=phi3_mini_4k"),  # fails: there is no hub
        typed("evaluate", "run_id=none"),  # fails
    ]
    assert [done.returncode for done in steps] == [0, 0, 0, 1, 1], [done.stderr for done in steps]
    assert not [done.args for done in steps if CANARY in done.stdout + done.stderr]
    assert len(list(planted.rglob("*"))) > 40
    assert _leaks(planted) == []


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{CANARY}@127.0.0.1:9",
        f"https://me:{CANARY}@127.0.0.1:9/?token={CANARY}",
        f"postgresql://me:{CANARY}@127.0.0.1:9/mlflow",
        f"sqlite://me:{CANARY}@host/mlflow.db",
        f"nonsense://me:{CANARY}@host",
    ],
)
def test_the_password_of_an_address_is_not_told(typed, monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = typed("register", "dry_run=true")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert _leaks(tmp_path) == []


def test_the_password_in_the_address_of_the_repository_is_taken_from_the_run(monkeypatch):
    """`mlflow run` logs where the project was cloned from, as it was typed."""
    client = mlflow.MlflowClient()
    tags = {
        "mlflow.source.git.repoURL": f"https://me:{CANARY}@git.example/phi3.git",
        "mlflow.gitRepoURL": f"https://{CANARY}@git.example/phi3.git",
        "mlflow.source.name": "git@git.example:phi3.git",
    }
    run = client.create_run("0", tags=tags)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with runs.start("build"):
        pass
    kept = client.get_run(run.info.run_id).data.tags
    assert kept["mlflow.source.git.repoURL"] == kept["mlflow.gitRepoURL"] == "https://git.example/phi3.git"
    assert kept["mlflow.source.name"] == "git@git.example:phi3.git"


def test_a_secret_of_the_environment_is_cut_out_of_what_libraries_say(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    said = redacted(f"401 for https://u:p@host/x?token=1, false, {CANARY}")
    assert said == "401 for https://host/x?token=1, false, ***"


def test_a_password_that_no_address_should_hold_is_cut_out_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:a/{CANARY}@host/mlflow")
    assert CANARY not in redacted(f"could not connect to postgresql://me:a/{CANARY}@host/mlflow as me:a/{CANARY}")
