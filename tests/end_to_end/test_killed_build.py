"""A real build that is stopped, and then killed with -9, while its model is half made."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.store import connection, integrity, names, orphans, processes, runs
from steps.store.names import FINGERPRINT
from steps.store.variants import find_variants
from tests.conftest import PROJECT
from tests.support import wait_until


@pytest.fixture
def half_built(checkpoint, isolated):
    """Return the process of a real build that is stopped while its model is PENDING."""
    command = [sys.executable, "-m", "steps.build", "mode=onnx", "model=local", f"model.path={checkpoint.directory}"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: process.poll() is not None or models("PENDING"), seconds=120)
            assert process.poll() is None
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def models(status):
    """Return the LoggedModels with this status."""
    return [model for model in mlflow.MlflowClient().search_logged_models(["0"]) if str(model.status) == status]


def runs_with(status):
    """Return the runs with this status."""
    return [run for run in mlflow.MlflowClient().search_runs(["0"]) if run.info.status == status]


def test_a_running_build_is_left_alone_and_a_killed_one_is_marked_failed(
    half_built, typed, checkpoint, record_property
):
    client = mlflow.MlflowClient()
    orphans.fail_orphans(client, "0")
    assert len(models("PENDING")) == len(runs_with("RUNNING")) == 1
    (model,) = models("PENDING")
    half = Path(model.artifact_location, "artifacts")
    half.mkdir(parents=True, exist_ok=True)
    (half / "model.onnx.data").write_bytes(b"half of it")

    half_built.kill()
    os.waitid(os.P_PID, half_built.pid, os.WEXITED | os.WNOWAIT)
    started = time.perf_counter()
    done = typed("evaluate", "evaluate.speed=false")
    seconds = time.perf_counter() - started
    record_property("figure", f"build killed: its run and model are marked FAILED {seconds:.1f} s later")
    assert done.returncode == 1  # there is no variant to evaluate
    assert f"({model.source_run_id}) was killed: it is marked FAILED." in done.stdout
    assert [run.info.run_id for run in runs_with("FAILED")] == [model.source_run_id]
    assert [failed.model_id for failed in models("FAILED")] == [model.model_id]
    assert not half.exists()
    assert not runs_with("RUNNING")
    assert not models("PENDING")


@pytest.fixture
def create_killed_run():
    """Return a function that creates a run whose process has ended, as a killed step leaves it."""

    def create(**tags):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            identity = pool.submit(processes.identity).result()
        return mlflow.MlflowClient().create_run("0", tags={names.PROCESS: identity} | tags)

    return create


def create_variant(run, name):
    """Create the READY model of a run, with no more than makes it a variant."""
    client = mlflow.MlflowClient()
    tags, params = {FINGERPRINT: "f"}, {"mode": "onnx"}
    model = client.create_logged_model("0", name=name, source_run_id=run.info.run_id, tags=tags, params=params)
    client.finalize_logged_model(model.model_id, "READY")


def test_a_pending_model_is_marked_failed_even_if_mlflow_run_ended_its_run(create_killed_run):
    client = mlflow.MlflowClient()
    run = create_killed_run()
    client.create_logged_model("0", name="half", source_run_id=run.info.run_id)
    client.set_terminated(run.info.run_id, "FAILED")
    orphans.fail_orphans(client, "0")
    assert [model.name for model in models("FAILED")] == ["half"]


def test_a_killed_evaluation_leaves_a_complete_variant_with_a_finished_run(create_killed_run):
    client = mlflow.MlflowClient()
    run = create_killed_run(**{FINGERPRINT: "f"})
    create_variant(run, "whole")
    orphans.fail_orphans(client, "0")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert [variant.name for variant in find_variants(client, "0")] == ["whole"]


def test_an_evaluation_that_works_in_an_old_run_is_left_alone(create_killed_run):
    client = mlflow.MlflowClient()
    run = create_killed_run()
    client.set_terminated(run.info.run_id, "FINISHED")
    with runs.reopen(run.info.run_id):
        orphans.fail_orphans(client, "0")
        assert client.get_run(run.info.run_id).info.status == "RUNNING"


def test_runs_and_models_of_other_programs_are_left_alone():
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    client.create_logged_model("0", name="theirs", source_run_id=run.info.run_id)
    client.create_logged_model("0", name="without a run")
    orphans.fail_orphans(client, "0")
    assert len(models("PENDING")) == 2
    assert len(runs_with("RUNNING")) == 1


def test_a_failed_build_leaves_no_files(monkeypatch, checkpoint):
    def fail(*_):
        raise OSError("no more")

    monkeypatch.setattr(integrity, "seal", fail)
    with pytest.raises(OSError, match="no more"):
        build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    (model,) = models("FAILED")
    assert not Path(model.artifact_location).exists()
    assert len(runs_with("FAILED")) == 1


def test_a_model_whose_run_was_deleted_is_not_a_variant():
    client = mlflow.MlflowClient()
    run = client.create_run("0", tags={FINGERPRINT: "f"})
    create_variant(run, "deleted")
    assert [variant.name for variant in find_variants(client, "0")] == ["deleted"]
    client.delete_run(run.info.run_id)
    assert find_variants(client, "0") == []


def test_connecting_claims_the_run_of_mlflow_run_before_the_step_starts_one(monkeypatch):
    """A step that is killed while it trains or downloads a checkpoint has started no run of its own."""
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    connection.connect()
    assert not processes.is_gone(client.get_run(run.info.run_id).data.tags[names.PROCESS])
