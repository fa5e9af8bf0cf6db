"""The commands that a step suggests, in the way in which its user started it.

`mlflow run` needs the same environment manager and the same experiment again. A step that was started by Python needs
neither of them.
"""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from steps.config.paths import PROJECT, user_directory
from steps.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow.entities import Run

# What `mlflow run` uses if nothing is said.
DEFAULT_MANAGER = "conda"


def step_command(step: str, *overrides: str) -> str:
    """Return the command that runs a step, as a user types it.

    Args:
        step: The step's name, such as evaluate.
        overrides: Its overrides, such as run_id=….
    """
    words = [shlex.quote(override) for override in overrides]
    run = _project_run()
    if run is None:
        return " ".join([f"python -m steps.{step}", *words])
    entry = [] if step == "main" else ["-e", step]
    manager = _manager(run)
    environment = [] if manager == DEFAULT_MANAGER else ["--env-manager", manager]
    options = [*entry, *environment, *_experiment(run)]
    return " ".join(["mlflow run", _project(run), *options, *(f"-P {word}" for word in words)])


def serve_command(model: str) -> str:
    """Return the command that serves a model with MLflow's server."""
    run = _project_run()
    return f"mlflow models serve -m {model} --env-manager {_manager(run) if run else 'local'} --port 5001"


def _project_run() -> Run | None:
    """Return the run that `mlflow run` started for this step; None if Python started the step."""
    run_id = _first_environment().get("MLFLOW_RUN_ID")
    return _read(run_id) if run_id else None


def _first_environment() -> dict[str, str]:
    """Return the variables that the process began with: MLflow and the steps remove some of them on the way."""
    return psutil.Process().environ()


@cache
def _read(run_id: str) -> Run:
    import mlflow

    return mlflow.MlflowClient().get_run(run_id)


def _manager(run: Run) -> str:
    """Return the environment manager of a run. MLflow tags every one but `local`."""
    return str(run.data.tags.get("mlflow.project.env", "local"))


def _experiment(run: Run) -> list[str]:
    """Return the option that chose the experiment, unless a variable of the user's shell did."""
    import mlflow

    usual = _first_environment().get("MLFLOW_EXPERIMENT_NAME", "Default")
    name = mlflow.MlflowClient().get_experiment(run.info.experiment_id).name
    return [] if name == usual else ["--experiment-name", shlex.quote(name)]


def _project(run: Run) -> str:
    """Return the project as the user may type it: a dot for the folder in which they stand."""
    source = run.data.tags.get("mlflow.source.name", "")
    if Path(source).is_dir() or not source:
        return "." if user_directory() == PROJECT else shlex.quote(source or str(PROJECT))
    return shlex.quote(without_secrets(source))
