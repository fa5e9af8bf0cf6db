"""Eight builds and eight registers at the same time on a new PostgreSQL store, where an advisory lock takes turns."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from steps.errors import StepError
from steps.promotion import lock
from steps.store.variants import find_variants
from tests import postgresql
from tests.conftest import PROJECT
from tests.promotion.processes import WORKERS
from tests.promotion.test_race import verdict
from tests.support import wait_until

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(
        postgresql.INITDB is None or importlib.util.find_spec("psycopg") is None, reason=postgresql.REASON
    ),
]
ROUNDS = 2
HOLD = """
import time
from steps.promotion import lock
with lock.held("phi3", 0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server():
    with postgresql.running() as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    return server.database("direct")


def build_eight(address, folder):
    """Start eight builds at the same time; return their exit codes and errors."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": address, "PYTHONPATH": str(PROJECT)}
    words = [sys.executable, "-m", "steps.build", "mode=onnx", "precision=int4"]
    builds = [
        subprocess.Popen(
            [*words, f"generation.max_tokens={tokens}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for tokens in range(12, 12 + WORKERS)
    ]
    return [(build.communicate()[1], build.returncode) for build in builds]


# test_shared_store.py does much the same in CI, behind a server.
@pytest.mark.slow
def test_eight_builds_and_eight_registers_at_the_same_time(address, checkpoint, processes, tmp_path, figure):
    started = time.perf_counter()
    assert build_eight(address, tmp_path) == [("", 0)] * WORKERS
    built = time.perf_counter() - started
    assert len(find_variants(mlflow.MlflowClient(address), "0")) == WORKERS
    processes("race", address, tmp_path, ROUNDS)
    wrong, doubles = verdict(address, ROUNDS)
    seconds = time.perf_counter() - started - built
    figure(
        f"PostgreSQL: {WORKERS} concurrent builds {built:.0f} s, 0 errors; {ROUNDS} rounds of {WORKERS} registers "
        f"{seconds:.0f} s, wrong champions {wrong}, duplicates {doubles}"
    )
    assert (wrong, doubles) == (0, 0)


def test_the_lock_ends_with_the_process_that_holds_it(address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with lock.held("another name", 0) as locked:
            assert locked
        expected = r"has held the lock in postgresql://127\.0\.0\.1:\d+/direct for more than"
        with pytest.raises(StepError, match=expected), lock.held("phi3", 0.5):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        wait_until(lambda: _can_hold("phi3"))
    finally:
        holder.kill()
        holder.communicate()


def _can_hold(name):
    try:
        with lock.held(name, 0):
            return True
    except StepError:
        return False
