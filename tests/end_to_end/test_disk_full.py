"""A build whose store has no room for the weights: on a real file system that is full."""

import re
import resource
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from steps import build
from steps.evaluation import asking
from steps.modes import get_mode, onnx
from steps.store.variants import find_variants, logged_models
from tests.conftest import SPAIN


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder on a file system of 1 MB, which is less than a model.

    Where nothing can be mounted, no file may grow beyond 1 MB while the model is made and logged.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(words, capture_output=True, check=False).returncode == 0
    if not mounted:
        limited = replace(get_mode("onnx"), log=_limited(get_mode("onnx").log))
        monkeypatch.setattr(build, "get_mode", lambda name: limited)
        monkeypatch.setattr(onnx, "export_to_onnx", _limited(onnx.export_to_onnx))
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


@pytest.fixture
def full(small_disk, monkeypatch):
    """Words for where there is no room → the id of an experiment that keeps its files there, or elsewhere."""

    def make(where):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "small")
        if where == "temporary":
            (small_disk / "tmp").mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(small_disk / "tmp"))
        elsewhere = small_disk.parent / "elsewhere"
        location = str((elsewhere if where == "temporary" else small_disk) / "files")
        return mlflow.MlflowClient().create_experiment("small", artifact_location=location)

    return make


@pytest.mark.parametrize("where", ["artifacts", "temporary"])
def test_a_full_disk_is_told_in_a_line_and_nothing_is_left_over(typed, checkpoint, small_disk, full, where):
    client = mlflow.MlflowClient()
    experiment = full(where)
    done = typed("build", "mode=onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: \S+ is full: the model needs 2\.\d MB, [\d.]+ MB were free\. Free some space, or choose another "
        r"artifact location \(for temporary files, TMPDIR\)\. Nothing was left behind\.",
        line,
    )
    assert {run.info.status for run in client.search_runs([experiment])} == {"FAILED"}
    assert {str(model.status) for model in logged_models(client, experiment)} <= {"FAILED"}
    assert not [file for file in Path(small_disk).rglob("*") if file.stat().st_size > 100_000]
    assert shutil.disk_usage(small_disk).free > 900_000


def test_the_champion_is_served_on_beside_a_build_that_found_no_room(typed, checkpoint, small_disk, monkeypatch):
    assert typed("build", "mode=onnx").returncode == 0
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    mlflow.register_model(variant.uri, "phi3")
    mlflow.MlflowClient().set_registered_model_alias("phi3", "champion", "1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "small")
    mlflow.MlflowClient().create_experiment("small", artifact_location=str(small_disk / "files"))
    assert typed("build", "mode=onnx", "generation.max_tokens=8").returncode == 1
    with asking.loaded("models:/phi3@champion") as model:
        reply = model.predict({"messages": [{"role": "user", "content": SPAIN}]})
    assert "Madrid" in reply["choices"][0]["message"]["content"]
