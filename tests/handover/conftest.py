"""The two options of the upstream sample, built once, and the champion as its folder."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlflow
import pytest

from steps import build, command_line
from tests.conftest import PROJECT
from tests.support import enter_store

VARIANTS = {
    "option 1": ["mode=transformers"],
    "option 2": ["mode=onnx", "precision=int4", "interface=prompt"],
    "chat": ["mode=onnx", "precision=int4"],
}


@pytest.fixture(scope="session")
def store(tmp_path_factory, empty_store):
    """A folder with a store, and with docs/ where the commands of the pages look for it."""
    folder = tmp_path_factory.mktemp("handover")
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "docs").symlink_to(PROJECT / "docs")
    return folder


@pytest.fixture(scope="session")
def model_of(store, caches, checkpoint):
    """Return a function that builds a variant, once, and returns its id."""

    @cache
    def built(name):
        with pytest.MonkeyPatch.context() as patch:
            enter_store(patch, store, caches)
            config = command_line.compose("build", [*VARIANTS[name], "check=false"])
            return build.build(config, checkpoint)

    return built


@pytest.fixture(scope="session")
def folder_of(store, model_of, caches):
    """Return a function that exports a variant, once, and returns its folder."""

    @cache
    def exported(name):
        model = model_of(name)
        with pytest.MonkeyPatch.context() as patch:
            enter_store(patch, store, caches)
            return mlflow.artifacts.download_artifacts(f"models:/{model}", dst_path=str(store / model))

    return exported


@pytest.fixture(scope="session")
def champion(store, model_of, caches):
    """Register the chat variant as the champion; return the store's folder."""
    model = model_of("chat")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(patch, store, caches)
        client = mlflow.MlflowClient()
        client.create_registered_model("phi3")
        version = client.create_model_version("phi3", f"models:/{model}", model_id=model)
        client.set_registered_model_alias("phi3", "champion", version.version)
    return store


def commands(page, *beginnings):
    """Return the commands of a page that begin like this."""
    blocks = re.findall(r"```sh\n(.*?)```", (PROJECT / "docs" / page).read_text(), re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(beginnings)]


def execute(command, folder):
    """Run a command of a page as it is written, in a folder with a store or without; return its output."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
