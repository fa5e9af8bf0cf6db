"""Jobs by a launcher: the same runs, faults and leaderboard as without one, at the same time."""

import json
import os
import subprocess
import sys

import mlflow
import pytest

from steps import command_line
from steps.command_line import launching
from steps.errors import StepError
from steps.store.variants import find_variants
from tests.conftest import PROJECT

INSTALLED = launching._is_installed
ONNX = ["mode=onnx", "precision=int4"]
# How each launcher runs two jobs at a time on this machine.
HERE = {
    "joblib": ["launcher=joblib", "launcher.jobs=2"],
    "slurm": ["launcher=slurm", "launcher.cluster=local", "launcher.minutes=10"],
}
LAUNCHERS = [
    pytest.param(
        name,
        marks=[pytest.mark.service, pytest.mark.skipif(not INSTALLED(package), reason=f"{package} is not installed")],
    )
    for package, name in launching.EXTRAS.items()
]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["launcher=slrm"], "Unknown launcher 'slrm'. Did you mean 'slurm'? Available: joblib, none, slurm."),
        (
            ["launcher=slurm", "launcher.jobs=3"],
            "launcher.jobs is not a key of launcher=slurm, it is a key of launcher=joblib.",
        ),
        (["launcher=joblib,slurm"], "launcher must be one launcher, got a sweep: launcher=joblib,slurm."),
        (["launcher=joblib", "launcher.jobs=0"], "launcher.jobs must be at least 1, got 0."),
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


def test_a_launcher_is_no_part_of_a_variant(monkeypatch):
    monkeypatch.setattr(launching, "_is_installed", lambda package: True)
    overrides, launcher = launching.split(["mode=onnx", "launcher=slurm", "launcher.partition=big", "launcher.gpus=1"])
    assert overrides == ["mode=onnx"]
    assert (launcher.name, launcher.partition, launcher.gpus) == ("slurm", "big", 1)


def start(step_name, words, folder, **environment):
    """Start a step in its own process, in a folder that is not the project's."""
    return subprocess.Popen(
        [sys.executable, "-m", f"steps.{step_name}", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_failing_job_does_not_keep_the_others_and_is_reported(checkpoint, tmp_path, name):
    """Two variants can be built. The other two need a hub, which cannot be reached here."""
    words = [*ONNX, "model=miniature,phi3_mini_4k", "interface=chat,prompt"]
    process = start("build", [*words, *HERE[name]], tmp_path)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 1
    lines = errors.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") and "Phi-3-mini-4k-instruct" in line for line in lines), errors
    client = mlflow.MlflowClient()
    variants = find_variants(client, "0")
    assert {variant.config.interface for variant in variants} == {"chat", "prompt"}
    (parent,) = mlflow.search_runs(filter_string="attributes.run_name = 'build-sweep'", output_format="list")
    assert parent.info.status == "FAILED"
    runs = [client.get_run(variant.run_id) for variant in variants]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert all(run.data.params["mode"] == "onnx" and "launcher" not in run.data.params for run in runs)


@pytest.mark.service
@pytest.mark.skipif(not INSTALLED("hydra_joblib_launcher"), reason="hydra_joblib_launcher is not installed")
def test_the_main_job_fans_out_and_registers_once(checkpoint, tmp_path):
    variants = "variants=[[mode=onnx], [mode=onnx, precision=int4], [mode=onnx, precision=int4, interface=prompt]]"
    process = start("main", [variants, "evaluate.speed=false", "promotion.smoke=false", *HERE["joblib"]], tmp_path)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    assert "Launching 3 jobs" in output
    assert output.count("Ready already: ") == 3
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
    leaderboard = json.loads(mlflow.artifacts.load_text(f"{main.info.artifact_uri}/leaderboard.json"))
    assert leaderboard
