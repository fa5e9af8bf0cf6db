"""The commands that a step suggests, in the way in which its user started it.

`mlflow run` needs the same environment manager and the same experiment again. A step that was started by Python needs
neither of them.
"""

from __future__ import annotations

import os
import shlex
from functools import cache
from pathlib import Path

import psutil

from steps.config.paths import PROJECT, user_directory
from steps.redaction import without_secrets

# What `mlflow run` uses if nothing is said.
DEFAULT_MANAGER = "conda"


def step_command(step: str, *overrides: str) -> str:
    """Return the command that runs a step, as a user types it.

    Args:
        step: The step's name, such as evaluate.
        overrides: Its overrides, such as run_id=….
    """
    words = [shlex.quote(override) for override in overrides]
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return " ".join([f"python -m steps.{step}", *words])
    entry = [] if step == "main" else ["-e", step]
    options = [*entry, *_environment(run_id), *_experiment(run_id)]
    return " ".join(["mlflow run", _project(run_id), *options, *(f"-P {word}" for word in words)])


def serve_command(model: str) -> str:
    """Return the command that serves a model with MLflow's server."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    manager = _tags(run_id).get("mlflow.project.env", DEFAULT_MANAGER) if run_id else "local"
    return f"mlflow models serve -m {model} --env-manager {manager} --port 5001"


def _environment(run_id: str) -> list[str]:
    manager = _tags(run_id).get("mlflow.project.env", DEFAULT_MANAGER)
    return [] if manager == DEFAULT_MANAGER else ["--env-manager", manager]


def _experiment(run_id: str) -> list[str]:
    """Return the option that chose the experiment, unless a variable of the user's shell did."""
    import mlflow

    # The variable as the process began with it: a step removes it, so that the run's own experiment counts.
    usual = psutil.Process().environ().get("MLFLOW_EXPERIMENT_NAME", "Default")
    client = mlflow.MlflowClient()
    name = client.get_experiment(client.get_run(run_id).info.experiment_id).name
    return [] if name == usual else ["--experiment-name", shlex.quote(name)]


def _project(run_id: str) -> str:
    """Return the project as the user may type it: a dot for the folder in which they stand."""
    source = _tags(run_id).get("mlflow.source.name", "")
    if Path(source).is_dir() or not source:
        return "." if user_directory() == PROJECT else shlex.quote(source or str(PROJECT))
    return shlex.quote(without_secrets(source))


@cache
def _tags(run_id: str) -> dict[str, str]:
    import mlflow

    return dict(mlflow.MlflowClient().get_run(run_id).data.tags)
