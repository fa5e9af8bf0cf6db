"""Builds on a real file system that is full."""

import re
import resource
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from steps.evaluation import asking
from steps.modes import onnx
from steps.store.variants import find_variants, logged_models
from tests.conftest import SPAIN

LIMIT = 2**20  # bytes: less than a model


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of 1 MB, or a usual folder if nothing can be mounted here."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={LIMIT}", "tmpfs", str(folder)]
        subprocess.run(command, capture_output=True, check=False)
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def create_experiment(small_disk, monkeypatch):
    """Return a function that creates the steps' experiment and returns its id.

    The small disk holds its artifacts, or only the temporary files. If the disk is not mounted, no file may grow
    beyond its size while a model is made and logged.
    """

    def create(on_small_disk):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "small")
        if not small_disk.is_mount():
            monkeypatch.setattr(onnx, "MODE", replace(onnx.MODE, log=with_small_files(onnx.MODE.log)))
            monkeypatch.setattr(onnx, "export_to_onnx", with_small_files(onnx.export_to_onnx))
        artifacts = small_disk
        if on_small_disk == "temporary files":
            artifacts = small_disk.parent / "elsewhere"
            (small_disk / "tmp").mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(small_disk / "tmp"))
        return mlflow.MlflowClient().create_experiment("small", artifact_location=str(artifacts / "files"))

    return create


def with_small_files(function, limit=LIMIT):
    """Return a function that writes no file beyond a size, that of the small disk by default."""

    def limited(*arguments, **named):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            return function(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.parametrize("on_small_disk", ["artifacts", "temporary files"])
def test_a_full_disk_is_reported_in_one_line_and_nothing_is_left_behind(
    typed, checkpoint, small_disk, create_experiment, on_small_disk
):
    client = mlflow.MlflowClient()
    experiment = create_experiment(on_small_disk)
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


def test_the_champion_still_answers_after_a_build_without_space(typed, checkpoint, create_experiment):
    assert typed("build", "mode=onnx").returncode == 0
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    mlflow.register_model(variant.uri, "phi3")
    mlflow.MlflowClient().set_registered_model_alias("phi3", "champion", "1")
    create_experiment("artifacts")
    assert typed("build", "mode=onnx", "generation.max_tokens=8").returncode == 1
    with asking.loaded("models:/phi3@champion") as model:
        reply = model.predict({"messages": [{"role": "user", "content": SPAIN}]})
    assert "Madrid" in reply["choices"][0]["message"]["content"]
