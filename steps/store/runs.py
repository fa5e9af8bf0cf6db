"""Start and reopen MLflow runs.

A step uses the run that `mlflow run` started, or starts one. Inside another step's run it starts a child run. So the
same code gives a variant its run in a single build, in a sweep and in the main job.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from steps.config.parameters import text
from steps.output import echo
from steps.redaction import redacted
from steps.store import processes
from steps.store.address import ui_address


def experiment_id() -> str:
    """The experiment that `mlflow run` or MLFLOW_EXPERIMENT_NAME names, else the default one."""
    from mlflow.tracking.fluent import _get_experiment_id

    return _get_experiment_id()


@contextlib.contextmanager
def start(name: str, tags: dict[str, str] | None = None) -> Iterator[Any]:
    """A step's run: the project's, a new one, or a child of the run that is active already."""
    import mlflow

    nested = mlflow.active_run() is not None
    tags = {processes.TAG: processes.identity()} | (tags or {})
    with mlflow.start_run(run_name=name, nested=nested, tags=tags) as active:
        mlflow.set_tags({"mlflow.runName": name} | _cleaned(active.data.tags))
        if not nested and mlflow.get_tracking_uri().startswith("http"):
            page = f"#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
            echo(f"Run {name}: {ui_address()}/{page}")
        yield active


def _cleaned(tags: dict[str, str]) -> dict[str, str]:
    """The tags that hold a password: `mlflow run` logs the address that the project was cloned from as it is."""
    return {key: redacted(value) for key, value in tags.items() if redacted(value) != value}


@contextlib.contextmanager
def reopen(run_id: str) -> Iterator[Any]:
    """The run of a variant, to log more to it."""
    import mlflow

    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield active
        return
    # Before it is RUNNING again: the process that built it is gone, and another step would end its run.
    mlflow.MlflowClient().set_tag(run_id, processes.TAG, processes.identity())
    with mlflow.start_run(run_id=run_id, nested=active is not None) as reopened_run:
        yield reopened_run


def log_params(params: dict[str, Any]) -> None:
    """Log the resolved configuration. What `mlflow run` has logged of -P stays as it was typed."""
    import mlflow

    there = mlflow.get_run(mlflow.active_run().info.run_id).data.params
    mlflow.log_params({key: text(value) for key, value in params.items() if key not in there})
