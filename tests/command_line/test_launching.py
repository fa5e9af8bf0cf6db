"""Jobs by a launcher: the same runs, faults and leaderboard as without one, at the same time."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tomllib

import mlflow
import pytest

from steps import command_line
from steps.command_line import launching
from steps.config.launch import Launcher
from steps.errors import StepError
from steps.store.variants import find_variants
from tests import slurm
from tests.conftest import PROJECT

INSTALLED = launching._is_installed
ONNX = ["mode=onnx", "precision=int4"]
# How each launcher runs two jobs at a time on this machine.
HERE = {
    "joblib": ["launcher=joblib", "launcher.jobs=2"],
    "ray": ["launcher=ray"],
    "slurm": ["launcher=slurm", "launcher.minutes=10", "launcher.memory_gb=2", f"launcher.partition={slurm.PARTITION}"],
    "submitit": ["launcher=slurm", "launcher.minutes=10", "launcher.cluster=local"],
}
PACKAGES = {extra: package for package, extra in launching.EXTRAS.items()} | {"submitit": "hydra_submitit_launcher"}


def launcher(name, *marks):
    """Return a parameter that is skipped where the launcher's package is missing."""
    missing = pytest.mark.skipif(not INSTALLED(PACKAGES[name]), reason=f"{PACKAGES[name]} is not installed")
    return pytest.param(name, marks=[pytest.mark.service, missing, *marks])


LAUNCHERS = [
    launcher("joblib"),
    launcher("ray"),
    launcher("slurm", pytest.mark.skipif(slurm.missing() is not None, reason=str(slurm.missing()))),
    # Much the same as on a real Slurm.
    launcher("submitit", pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["launcher=slrm"], "Unknown launcher 'slrm'. Did you mean 'slurm'? Available: joblib, none, ray, slurm."),
        (
            ["launcher=slurm", "launcher.jobs=3"],
            "launcher.jobs is not a key of launcher=slurm, it is a key of launcher=joblib.",
        ),
        (
            ["launcher=ray", "launcher.partition=big"],
            "launcher.partition is not a key of launcher=ray, it is a key of launcher=slurm.",
        ),
        (["launcher=joblib,slurm"], "launcher must be one launcher, got a sweep: launcher=joblib,slurm."),
        (["launcher=joblib", "launcher.jobs=0"], "launcher.jobs must be at least 1, got 0."),
        (["launcher=ray", "launcher.cpus=0"], "launcher.cpus must be at least 1, got 0."),
    ],
)
def test_a_launcher_is_checked_before_anything_starts(words, sentence):
    with pytest.raises(StepError) as error:
        launching.split(words)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("name", launching.EXTRAS.values())
def test_a_missing_extra_is_one_sentence_with_the_command(monkeypatch, name):
    monkeypatch.setattr(launching, "_is_installed", lambda package: False)
    with pytest.raises(StepError) as error:
        launching.split(["mode=onnx", f"launcher={name}"])
    (sentence,) = error.value.faults
    (package,) = (package for package, extra in launching.EXTRAS.items() if extra == name)
    assert f"`pip install {package.replace('_', '-')}`" in sentence


@pytest.mark.parametrize("step_name", ["register", "score"])
def test_a_step_without_jobs_has_no_launcher(step_name):
    with pytest.raises(StepError) as error:
        command_line.check(step_name, [["launcher=joblib"]])
    assert str(error.value).startswith("Unknown key 'launcher'.")


def test_a_launchers_error_is_reported_even_if_the_store_is_gone(monkeypatch):
    def gone(*_):
        raise ConnectionError("nobody answers")

    def fails():
        raise RuntimeError("the cluster is full")

    monkeypatch.setattr(launching.orphans, "fail_orphans", gone)
    monkeypatch.setattr(launching, "_environment", fails)
    with pytest.raises(StepError, match=r"^launcher=here failed: .*the cluster is full"):
        launching.launch("build", [["mode=onnx"]], Launcher(name="here"))


def test_a_job_that_is_done_again_here_says_why(typed, monkeypatch):
    """There is no variant, so this process has nothing to evaluate either."""
    outcomes = [launching.JobOutcome(), launching.JobOutcome(("it is broken.",), 1)]
    monkeypatch.setattr(launching, "_is_installed", lambda package: True)
    monkeypatch.setattr(launching, "launch", lambda *_: outcomes)
    monkeypatch.setattr("steps.evaluate.jobs", lambda config: [["run_id=here"]])
    done = typed("evaluate", "launcher=joblib")
    assert "A job of evaluate failed: it is broken. It is tried again here.\n" in done.stdout
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no variant to evaluate in this experiment.")


def test_a_launcher_is_no_part_of_a_variant(monkeypatch):
    monkeypatch.setattr(launching, "_is_installed", lambda package: True)
    overrides, launcher = launching.split(["mode=onnx", "launcher=slurm", "launcher.partition=big", "launcher.gpus=1"])
    assert overrides == ["mode=onnx"]
    assert (launcher.name, launcher.partition, launcher.gpus) == ("slurm", "big", 1)


def test_every_package_is_in_the_extra_that_is_named_after_its_launcher():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in launching.EXTRAS.items():
        assert [line for line in extras[extra] if line.startswith(package.replace("_", "-"))]


def test_ray_is_asked_for_what_a_job_needs(monkeypatch):
    monkeypatch.setattr(launching, "_is_installed", lambda package: True)
    _, here = launching.split(["launcher=ray", "launcher.cpus=2", "launcher.gpus=1", "launcher.memory_gb=3"])
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        _, joined = launching.split(["launcher=ray", f"launcher.address={address}"])
    remote = {"num_cpus": "2", "num_gpus": "1", "memory": str(3 * 1024**3), "max_retries": "1"}
    for key, value in remote.items():
        assert f"+hydra.launcher.ray.remote.{key}={value}" in here.overrides()
    assert "hydra.launcher.ray.init.address='local'" in here.overrides()
    assert f"hydra.launcher.ray.init.address='{address}'" in joined.overrides()


@pytest.fixture
def started():
    """Start what a launcher needs; return its environment: `started("slurm")`."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(slurm.running()) if name == "slurm" else {}


def start(step_name, words, folder, host=None, **environment):
    """Start a step in its own process, in a folder that is not the project's, on this machine or on a host."""
    command = [sys.executable, "-m", f"steps.{step_name}", *words]
    return subprocess.Popen(
        host.command(command) if host else command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_failing_job_does_not_keep_the_others_and_is_reported(checkpoint, tmp_path, started, name):
    """Two variants can be built. The other two need a hub, which cannot be reached here."""
    words = [*ONNX, "model=miniature,phi3_mini_4k", "interface=chat,prompt"]
    process = start("build", [*words, *HERE[name]], tmp_path, **started(name))
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line != slurm.NO_ACCOUNTING]
    assert len(lines) == 2, errors
    assert all(line.startswith("error: ") and "Phi-3-mini-4k-instruct" in line for line in lines), errors
    client = mlflow.MlflowClient()
    variants = find_variants(client, "0")
    assert {variant.config.interface for variant in variants} == {"chat", "prompt"}
    (parent,) = mlflow.search_runs(filter_string="attributes.run_name = 'build-sweep'", output_format="list")
    assert parent.info.status == "FAILED"
    runs = [client.get_run(variant.run_id) for variant in variants]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert all(run.data.params["mode"] == "onnx" and "launcher" not in run.data.params for run in runs)


MAIN = ["variants=[[mode=onnx], [mode=onnx, precision=int4], [mode=onnx, precision=int4, interface=prompt]]"]
MAIN += ["evaluate.speed=false", "promotion.smoke=false"]


def check_main_job(output):
    """Check that `main` built and evaluated three variants as jobs, and registered once."""
    assert "Launching 3 jobs" in output
    assert "failed" not in output, output
    assert output.count("Ready already: ") == 3, output
    assert output.count("Promoted ") == 1
    client = mlflow.MlflowClient()
    assert str(client.get_model_version_by_alias("phi3", "champion").version) == "1"
    (main,) = mlflow.search_runs(filter_string="attributes.run_name = 'main'", output_format="list")
    children = mlflow.search_runs(filter_string=f"tags.mlflow.parentRunId = '{main.info.run_id}'", output_format="list")
    names = [run.info.run_name for run in children]
    assert sorted(name for name in names if name.startswith("onnx")) == [
        *("onnx-fp32-chat", "onnx-int4-chat", "onnx-int4-prompt"),
    ]
    assert names.count("evaluate-facts") >= 3
    assert names.count("register-phi3") == 1
    assert {run.info.status for run in children} == {"FINISHED"}
    assert json.loads(mlflow.artifacts.load_text(f"{main.info.artifact_uri}/leaderboard.json"))


@pytest.mark.parametrize("name", [launcher("joblib"), launcher("ray")])
def test_the_main_job_fans_out_and_registers_once(checkpoint, tmp_path, name):
    process = start("main", [*MAIN, *HERE[name]], tmp_path)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    check_main_job(output)
