"""A real tracking server that is killed in the middle of a build, for good."""

import os
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT
from tests.mlflow_server import SECONDS, running


@pytest.fixture
def server(isolated, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with running(folder) as server:
        yield server


def _statuses(server):
    """The statuses of all LoggedModels, from the file itself: 1 PENDING, 2 READY, 3 FAILED."""
    with sqlite3.connect(f"file:{server.folder}/mlflow.db?mode=ro", uri=True) as database:
        return [row[0] for row in database.execute("SELECT status FROM logged_models")]


@pytest.fixture
def building(server, checkpoint):
    """A real build at the server, whose model is PENDING."""

    def start(**environment):
        words = [sys.executable, "-m", "steps.build", "mode=onnx", "model=local", f"model.path={checkpoint.directory}"]
        environment = os.environ | {"MLFLOW_TRACKING_URI": server.address} | environment
        process = subprocess.Popen(
            words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(SECONDS * 50):
            if _statuses(server):
                return process
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.kill()
        return pytest.fail(f"no model after {SECONDS} s")

    return start


def test_a_server_that_is_gone_for_good_is_told_in_a_line(server, building):
    process = building(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    server.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(
        f"error: The tracking server {server.address} went away and has not come back ("
    )
    assert "Traceback" not in errors
