"""A real build that is stopped, and then killed with -9, while its model is half made."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from steps import command_line
from steps.store import connection, names, orphans, processes, runs
from steps.store.names import FINGERPRINT
from steps.store.variants import find_variants
from tests.conftest import PROJECT


@pytest.fixture
def half_built(checkpoint, isolated):
    """The process of a real build that was stopped while its model was PENDING."""
    words = [sys.executable, "-m", "steps.build", "mode=onnx", "model=local", f"model.path={checkpoint.directory}"]
    with subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(6000):
                assert process.poll() is None
                if _models("PENDING"):
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def _models(status):
    return [model for model in mlflow.MlflowClient().search_logged_models(["0"]) if str(model.status) == status]


def _runs(status):
    return [run for run in mlflow.MlflowClient().search_runs(["0"]) if run.info.status == status]


def test_a_build_that_lives_is_left_alone_and_one_that_was_killed_is_marked(
    half_built, typed, checkpoint, record_property
):
    client = mlflow.MlflowClient()
    orphans.fail_orphans(client, "0")
    assert len(_models("PENDING")) == len(_runs("RUNNING")) == 1
    (model,) = _models("PENDING")
    half = Path(model.artifact_location, "artifacts")
    half.mkdir(parents=True, exist_ok=True)
    (half / "model.onnx.data").write_bytes(b"half of it")

    half_built.kill()
    os.waitid(os.P_PID, half_built.pid, os.WEXITED | os.WNOWAIT)
    begun = time.perf_counter()
    done = typed("evaluate", "evaluate.speed=false")
    record_property("figure", f"build killed: its run and model are marked {time.perf_counter() - begun:.1f} s after")
    assert done.returncode == 1  # there is no variant to evaluate
    assert f"({model.source_run_id}) was killed: it is marked FAILED." in done.stdout
    assert [run.info.run_id for run in _runs("FAILED")] == [model.source_run_id]
    assert [failed.model_id for failed in _models("FAILED")] == [model.model_id]
    assert not half.exists()
    assert not _runs("RUNNING")
    assert not _models("PENDING")


@pytest.fixture
def killed_run():
    """A run whose process is gone, as a killed step leaves it; `killed_run(**tags)` → the run."""

    def make(**tags):
        client = mlflow.MlflowClient()
        with subprocess.Popen(
            [sys.executable, "-c", "from steps.store import processes; print(processes.identity())"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        ) as ended:
            identity = ended.stdout.read().strip()
        return client.create_run("0", tags={names.PROCESS: identity} | tags)

    return make


def test_a_pending_model_is_marked_although_mlflow_run_has_marked_its_run(killed_run):
    client = mlflow.MlflowClient()
    run = killed_run()
    client.create_logged_model("0", name="half", source_run_id=run.info.run_id)
    client.set_terminated(run.info.run_id, "FAILED")
    orphans.fail_orphans(client, "0")
    assert [model.name for model in _models("FAILED")] == ["half"]


def test_the_run_of_a_whole_variant_whose_evaluation_was_killed_is_finished(killed_run):
    client = mlflow.MlflowClient()
    run = killed_run(**{FINGERPRINT: "f"})
    model = client.create_logged_model("0", name="whole", source_run_id=run.info.run_id, tags={FINGERPRINT: "f"})
    client.finalize_logged_model(model.model_id, "READY")
    orphans.fail_orphans(client, "0")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert [variant.name for variant in find_variants(client, "0")] == ["whole"]


def test_an_evaluation_at_work_on_an_old_run_is_left_alone(killed_run):
    client = mlflow.MlflowClient()
    run = killed_run()
    client.set_terminated(run.info.run_id, "FINISHED")
    with runs.reopen(run.info.run_id):
        orphans.fail_orphans(client, "0")
        assert client.get_run(run.info.run_id).info.status == "RUNNING"


def test_what_others_left_is_left_alone():
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    client.create_logged_model("0", name="theirs", source_run_id=run.info.run_id)
    client.create_logged_model("0", name="without a run")
    orphans.fail_orphans(client, "0")
    assert len(_models("PENDING")) == 2
    assert len(_runs("RUNNING")) == 1


def test_a_build_that_fails_leaves_no_files(monkeypatch, checkpoint):
    from steps import build
    from steps.store import integrity

    def fail(*_):
        raise OSError("no more")

    monkeypatch.setattr(integrity, "seal", fail)
    with pytest.raises(OSError, match="no more"):
        build.build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    (model,) = _models("FAILED")
    assert not Path(model.artifact_location).exists()
    assert len(_runs("FAILED")) == 1


def test_the_model_of_a_deleted_run_is_no_variant():
    client = mlflow.MlflowClient()
    run = client.create_run("0", tags={FINGERPRINT: "f"})
    model = client.create_logged_model("0", name="deleted", source_run_id=run.info.run_id, tags={FINGERPRINT: "f"})
    client.finalize_logged_model(model.model_id, "READY")
    assert [variant.name for variant in find_variants(client, "0")] == ["deleted"]
    client.delete_run(run.info.run_id)
    assert find_variants(client, "0") == []


def test_the_run_of_mlflow_run_is_claimed_before_the_step_has_one_of_its_own(monkeypatch):
    """A step that is killed while it trains or fetches a checkpoint has not begun a run yet."""
    client = mlflow.MlflowClient()
    run = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    connection.connect()
    assert not processes.is_gone(client.get_run(run.info.run_id).data.tags[names.PROCESS])
