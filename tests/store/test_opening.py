"""A store that is not there yet, that several processes make at once, or that cannot be written."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from steps.errors import StepError
from steps.store import connection, opening
from tests.conftest import PROJECT
from tests.support import wait_until

OURS = "from steps.store.connection import connect; print(len(connect().search_experiments()))"
# As `mlflow run` does it.
PLAIN = "import mlflow; print(len(mlflow.MlflowClient().search_experiments()))"


@pytest.fixture
def new_store(tmp_path, monkeypatch):
    """The file of a store that nobody has opened yet."""
    file = tmp_path / "größe 1%" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{str(file).replace('%', '%25')}")
    return file


def _start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _results(processes):
    return [
        (output, errors[-500:], process.returncode)
        for process in processes
        for output, errors in [process.communicate()]
    ]


@pytest.mark.slow
def test_several_steps_start_together_on_a_new_store(new_store):
    assert [(output, code) for output, _, code in _results([_start(OURS) for _ in range(3)])] == [("1\n", 0)] * 3
    assert new_store.is_file()


@pytest.mark.slow
def test_steps_wait_for_mlflow_to_make_a_store(new_store):
    new_store.parent.mkdir()
    plain = _start(PLAIN)
    wait_until(lambda: new_store.is_file() and new_store.stat().st_size > 100_000, 120)
    results = _results([plain, _start(OURS), _start(OURS)])
    assert [(output, code) for output, _, code in results] == [("1\n", 0)] * 3, results


@pytest.mark.slow
def test_a_store_that_a_killed_process_has_left_half_made_is_finished_or_refused_in_a_line(new_store, step):
    """MLflow can go on from most of its steps, but not from within one."""
    new_store.parent.mkdir()
    plain = _start(PLAIN)
    wait_until(lambda: new_store.is_file() and new_store.stat().st_size > 100_000, 120)
    plain.kill()
    plain.communicate()
    done = step("register", "action=history")
    if done.returncode:
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: The store ")
        assert line.endswith("If a process was killed while it made this store, delete the file.")
    else:
        assert done.stdout == "phi3 has had no champion yet.\n"


def test_a_complete_store_is_opened_without_waiting(monkeypatch):
    monkeypatch.setattr(opening.time, "sleep", lambda seconds: pytest.fail("it waits"))
    Path("mlflow.db").touch()
    connection.connect()
    assert not list(Path.cwd().glob("*.lock"))


@pytest.mark.parametrize("content", ["no database, but text" * 50, None], ids=["a text", "a folder"])
def test_what_is_no_store_is_refused_at_once(tmp_path, monkeypatch, content):
    file = tmp_path / "notes.db"
    file.mkdir() if content is None else file.write_text(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    started = time.monotonic()
    with pytest.raises(StepError, match=r"^The store /.*/notes.db cannot be opened: .*\. Set MLFLOW_TRACKING_URI to"):
        connection.connect()
    assert time.monotonic() - started < 10


@pytest.fixture
def read_only(tmp_path):
    """A folder with a complete store that cannot be written, not even by root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if os.geteuid() == 0 and not mounted:
        pytest.skip("root may write everywhere, and nothing can be mounted")
    shutil.copy("mlflow.db", folder)
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    else:
        (folder / "mlflow.db").chmod(0o444)
        folder.chmod(0o555)
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        folder.chmod(0o755)


READ_ONLY = {
    "a build": ("build", "mode=onnx"),
    "a sweep": ("build", "mode=onnx,pyfunc"),
    "an evaluation": ("evaluate",),
    "a promotion": ("register",),
    "the main job": ("main",),
}


@pytest.mark.parametrize("words", READ_ONLY.values(), ids=READ_ONLY)
@pytest.mark.parametrize("name", ["mlflow.db", "new/mlflow.db"], ids=["a store", "no store"])
def test_a_store_that_cannot_be_written_is_refused_in_a_line(typed, read_only, monkeypatch, words, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{read_only / name}")
    done = typed(*words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The store ")
    assert "cannot be written. Set MLFLOW_TRACKING_URI to a" in line


def test_the_history_of_a_store_that_cannot_be_written_can_be_read(typed, read_only, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{read_only}/mlflow.db")
    done = typed("register", "action=history")
    assert (done.returncode, done.stdout) == (0, "phi3 has had no champion yet.\n")


def test_an_experiment_whose_files_cannot_be_written_is_refused_in_a_line(typed, read_only, monkeypatch):
    mlflow.MlflowClient().create_experiment("elsewhere", artifact_location=str(read_only / "files"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    done = typed("build", "mode=onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The experiment keeps its files in {read_only}/files, which cannot be written.")
