"""What a user reads if the variants are somewhere else: in another experiment, or where the folder was before."""

import contextlib
import errno
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.store.db import utils
from sqlalchemy import sql

from steps.errors import StepError
from steps.evaluation.outcome import Outcome
from steps.store import connection, names, opening


def test_an_empty_experiment_names_the_one_that_has_variants(typed, monkeypatch):
    experiment = mlflow.create_experiment("phi3")
    model = mlflow.initialize_logged_model("a", experiment_id=experiment, tags={names.FINGERPRINT: "f"})
    mlflow.finalize_logged_model(model.model_id, "READY")
    for step in ("evaluate", "register"):
        done = typed(step)
        assert done.returncode == 1
        assert "The experiment 'phi3' has some: set MLFLOW_EXPERIMENT_NAME=phi3." in done.stderr.splitlines()[0]


def test_a_moved_folder_is_one_sentence(typed, tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copy(tmp_path / "store" / "mlflow.db", before / "mlflow.db")
    location = before / "mlruns" / "1"
    mlflow.set_tracking_uri(f"sqlite:///{before}/mlflow.db")
    mlflow.create_experiment("moved", artifact_location=str(location))
    location.mkdir(parents=True)
    mlflow.set_tracking_uri(None)
    before.rename(after)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{after}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "moved")
    done = typed("evaluate")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The experiment keeps its files in {location}, which is gone: the store was moved.")
    assert not before.exists()


FULL = {
    "a file": OSError(errno.ENOSPC, "No space left on device", "/data/x"),
    "the store": mlflow.MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: …]"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_one_sentence(error):
    with pytest.raises(StepError, match=r"the disk is full\. Free some space") as refusal, connection.plain_errors():
        raise error
    assert len(refusal.value.faults) == 1
    assert os.linesep not in str(refusal.value)
    outcome = Outcome()
    with outcome.recorded(SimpleNamespace(name="a", uri="models:/m-1"), "could not be scored"):
        raise error
    assert outcome.faults == [f"a (models:/m-1) could not be scored: {refusal.value}"]


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
@pytest.mark.parametrize("words", [("build", "mode=onnx"), ("main", "mode=onnx")], ids=lambda w: w[0])
def test_a_store_that_stays_locked_is_one_sentence(typed, tmp_path, monkeypatch, words, lock):
    """With an IMMEDIATE lock the store can still be read. With an EXCLUSIVE one it cannot be opened."""
    monkeypatch.setattr(opening, "QUIET", 0)
    monkeypatch.setattr(opening, "SQLITE_WAIT", 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "mlflow.db", isolation_level=None)) as other:
        other.execute(f"BEGIN {lock}")
        done = typed(*words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The store sqlite:///{tmp_path}/store/mlflow.db was locked by another process")
    assert line.count("Finished work is kept: end that process or wait for it, and run the same command again.") == 1


def test_a_store_that_is_locked_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    # MLflow's own 20 seconds, made short.
    monkeypatch.setattr(utils, "sql", SimpleNamespace(text=lambda words: sql.text(words.replace("20000", "0"))))
    client = connection.connect()
    with contextlib.closing(sqlite3.connect(tmp_path / "store" / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            created = pool.submit(client.create_experiment, "waits")
            with pytest.raises(TimeoutError):
                created.result(timeout=0.3)
            other.execute("ROLLBACK")
            assert client.get_experiment(created.result()).name == "waits"
