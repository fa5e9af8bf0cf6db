"""The shared store of docs/scale.md: `mlflow server` on a new PostgreSQL, which passes artifacts on to S3.

The main job, then eight builds and eight registers at the same time. Only the server has the keys of the store.
"""

import importlib.util
import os
import subprocess
import sys
import time

import mlflow
import pytest

from steps.promotion import registry
from steps.store.variants import find_variants
from tests import mlflow_server, postgresql, s3
from tests.conftest import PROJECT
from tests.promotion.processes import WORKERS
from tests.promotion.test_postgresql import build_eight
from tests.promotion.test_race import verdict

MISSING = [name for name in ("psycopg", "moto", "boto3") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(postgresql.INITDB is None, reason=postgresql.REASON),
    pytest.mark.skipif(bool(MISSING), reason="pip install 'psycopg[binary]' boto3 'moto[server]'"),
]
VARIANTS = "variants=[[mode=onnx, precision=int4], [mode=onnx, precision=int4, interface=prompt]]"


@pytest.fixture(scope="module")
def store():
    with s3.running() as store:
        yield store


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with (
        postgresql.running() as database,
        mlflow_server.running(folder, database.database("shared"), store.artifacts, **store.environment) as server,
    ):
        yield server


@pytest.fixture(autouse=True)
def client_without_keys(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def test_the_main_job(store, checkpoint, tmp_path, figure):
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "steps.main", VARIANTS, "evaluate.speed=false"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "MLFLOW_EXPERIMENT_NAME": "main"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert (done.returncode, done.stderr) == (0, "")
    champion = registry.read(mlflow.MlflowClient(), "phi3").champion
    model = mlflow.get_logged_model(champion.model_id)
    assert str(model.status) == "READY"
    assert model.artifact_location.startswith("mlflow-artifacts:/")
    assert [key for key in store.objects() if champion.model_id in key and key.endswith("MLmodel")]
    figure(f"PostgreSQL and S3: the main job with 2 variants {time.perf_counter() - started:.0f} s")


def test_eight_builds_and_eight_registers_at_the_same_time(server, store, checkpoint, processes, tmp_path, figure):
    started = time.perf_counter()
    assert build_eight(server.address, tmp_path) == [("", 0)] * WORKERS
    built = time.perf_counter() - started
    variants = find_variants(mlflow.MlflowClient(server.address), "0")
    assert len(variants) == WORKERS
    processes("race", server.address, tmp_path, 1)
    wrong, doubles = verdict(server.address, 1)
    seconds = time.perf_counter() - started - built
    figure(
        f"PostgreSQL and S3: {WORKERS} concurrent builds {built:.0f} s, {WORKERS} registers {seconds:.0f} s, "
        f"0 errors, wrong champions {wrong}, duplicates {doubles}"
    )
    assert (wrong, doubles) == (0, 0)
