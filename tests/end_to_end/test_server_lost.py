"""A real tracking server that is killed in the middle of a build and does not come back."""

import os
import sqlite3
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.mlflow_server import SECONDS, running
from tests.support import wait_until


@pytest.fixture
def server(isolated, tmp_path):
    """Return a running server with a store of its own."""
    folder = tmp_path / "server"
    folder.mkdir()
    with running(folder) as server:
        yield server


@pytest.fixture
def start_build(server, checkpoint):
    """Return a function that starts a real build at the server, and returns its process once a model is there."""

    def start(**environment):
        command = [sys.executable, "-m", "steps.build", "mode=onnx", "model=local"]
        process = subprocess.Popen(
            [*command, f"model.path={checkpoint.directory}"],
            cwd=PROJECT,
            env=os.environ | {"MLFLOW_TRACKING_URI": server.address} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or has_model(server), SECONDS)
        except AssertionError:
            process.kill()
            raise
        assert process.poll() is None, process.communicate()
        return process

    return start


def has_model(server):
    """Return True if the server's database, read without the server, has a LoggedModel."""
    with sqlite3.connect(f"file:{server.folder}/mlflow.db?mode=ro", uri=True) as database:
        return database.execute("SELECT count(*) FROM logged_models").fetchone() != (0,)


def test_a_server_that_does_not_come_back_is_reported_in_one_line(server, start_build):
    process = start_build(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    server.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(
        f"error: The tracking server {server.address} went away and has not come back ("
    )
    assert "Traceback" not in errors
