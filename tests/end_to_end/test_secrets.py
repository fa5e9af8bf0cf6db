"""Secrets from the environment and from URIs appear in nothing that the steps write."""

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
def written_folder(monkeypatch, tmp_path):
    """Plant canaries in the environment; return the folder of everything that the steps write."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"{CANARY}-{name.lower()}")
    # Other tests may be writing these at this moment.
    unfinished = shutil.ignore_patterns("journals", "*.making-*", "*.lock")
    shutil.copytree(os.environ["PHI3_CACHE_DIR"], tmp_path / "cache", ignore=unfinished)
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "secrets")
    mlflow.create_experiment("secrets", artifact_location=str(tmp_path / "files"))
    return tmp_path


def leaks(folder: Path) -> list[Path]:
    """Return the files under a folder that hold a canary."""
    return [file for file in folder.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]


@pytest.mark.slow
def test_secrets_from_the_environment_are_written_nowhere(checkpoint, written_folder, typed):
    steps = [
        typed("build", "mode=onnx"),
        typed("evaluate", "evaluate.speed=false"),
        typed("register"),
        typed("build", "model=phi3_mini_4k"),  # fails: there is no hub
        typed("evaluate", "run_id=none"),  # fails
    ]
    assert [done.returncode for done in steps] == [0, 0, 0, 1, 1], [done.stderr for done in steps]
    assert not [done.args for done in steps if CANARY in done.stdout + done.stderr]
    assert len(list(written_folder.rglob("*"))) > 40
    assert leaks(written_folder) == []


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
def test_the_password_in_a_tracking_uri_is_not_printed(typed, monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = typed("register", "dry_run=true")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert leaks(tmp_path) == []


def test_the_password_in_the_repository_uri_is_removed_from_the_run(monkeypatch):
    """`mlflow run` logs the URI that the project was cloned from, as it was typed."""
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
    cleaned = client.get_run(run.info.run_id).data.tags
    assert cleaned["mlflow.source.git.repoURL"] == cleaned["mlflow.gitRepoURL"] == "https://git.example/phi3.git"
    assert cleaned["mlflow.source.name"] == "git@git.example:phi3.git"


def test_a_secret_from_the_environment_is_redacted_in_messages_of_libraries(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    message = redacted(f"401 for https://u:p@host/x?token=1, false, {CANARY}")
    assert message == "401 for https://host/x?token=1, false, ***"


def test_a_password_that_makes_its_uri_invalid_is_redacted_too(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:a/{CANARY}@host/mlflow")
    assert CANARY not in redacted(f"could not connect to postgresql://me:a/{CANARY}@host/mlflow as me:a/{CANARY}")
