"""A build whose store has no room for the weights: on a real file system that is full."""

import re
import resource
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest

from steps import tracking
from steps.models import flavors


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder on a file system of 1 MB, which is less than a model.

    Where nothing can be mounted, no file may grow beyond 1 MB while the model is logged.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(words, capture_output=True, check=False).returncode == 0
    if not mounted:
        monkeypatch.setattr(flavors, "log_variant", _limited(flavors.log_variant))
    yield folder
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _limited(log):
    def log_within_limit(*arguments, **named):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            return log(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return log_within_limit


def test_a_full_disk_is_told_in_a_line_and_nothing_is_left_over(typed, monkeypatch, checkpoint, small_disk):
    client = mlflow.MlflowClient()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "small")
    experiment = client.create_experiment("small", artifact_location=str(small_disk / "files"))
    done = typed("build", "mode=onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: \S+ is full: the model needs 2\.\d MB, [\d.]+ MB were free\. "
        r"Make room, or take another place for artifacts\. Nothing was left over\.",
        line,
    )
    assert {run.info.status for run in client.search_runs([experiment])} == {"FAILED"}
    assert {str(model.status) for model in tracking.logged_models(client, experiment)} <= {"FAILED"}
    assert not [file for file in Path(small_disk).rglob("*") if file.stat().st_size > 100_000]
    assert shutil.disk_usage(small_disk).free > 900_000
