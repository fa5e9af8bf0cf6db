"""Start and reopen MLflow runs.

A step uses the run that `mlflow run` started, or starts one. Inside another step's run it starts a child run. So the
same code gives a variant its run in a single build, in a sweep and in the main job.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from steps.output import echo
from steps.redaction import redacted
from steps.store import address, connection, names, processes
from steps.store.collisions import retried

if TYPE_CHECKING:
    from mlflow import ActiveRun

# In the environment of a job: the run that launched it.
PARENT = "PHI3_PARENT_RUN"


# Runs that this process has named.
_named_here: set[str] = set()


def experiment_id() -> str:
    """Return the experiment that `mlflow run` or MLFLOW_EXPERIMENT_NAME names, or the default one."""
    from mlflow.tracking.fluent import _get_experiment_id

    return str(retried(_get_experiment_id))


@contextlib.contextmanager
def start(name: str, tags: dict[str, str] | None = None) -> Iterator[ActiveRun]:
    """Work in a step's run: the project's, a new one, or a child of the run that is active already.

    Args:
        name: Name of the run, unless the user has named it with `mlflow run --run-name`.
        tags: Tags of the run.
    """
    import mlflow

    nested = mlflow.active_run() is not None
    tags = {names.PROCESS: processes.identity()} | (tags or {})
    run_name = name if nested else _name_from_user() or name
    parent = None if nested else os.environ.get(PARENT)
    with mlflow.start_run(run_name=run_name, nested=nested, parent_run_id=parent, tags=tags) as active:
        # `mlflow run` logs the address that the project was cloned from with its password.
        mlflow.set_tags({key: redacted(value) for key, value in active.data.tags.items() if redacted(value) != value})
        if not nested and mlflow.get_tracking_uri().startswith("http"):
            page = f"#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
            echo(f"Run {run_name}: {address.ui_address()}/{page}")
        yield active


def name_project_run(name: str) -> None:
    """Name the run that `mlflow run` started, unless the user has: a step may fail, or only read, before it has one."""
    import mlflow

    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and _name_from_user() is None:
        mlflow.MlflowClient().update_run(run_id, name=name)
        _named_here.add(run_id)


def describe_failure(step_name: str, sentences: Iterable[str]) -> None:
    """Name a project's run that failed before it had a name, and describe it by its errors, as far as that works."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    with contextlib.suppress(Exception):
        # It returns within seconds, also if a server is gone.
        client = connection.connect()
        if run_id not in _named_here:
            name_project_run(f"{step_name}-failed")
        text = "\n\n".join(f"**error**: {redacted(sentence)}" for sentence in sentences)
        retried(client.set_tag, run_id, names.NOTE, text)


def _name_from_user() -> str | None:
    """Return the name that the user has given to the run that `mlflow run` started; None if it has a random one."""
    import mlflow
    from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id or run_id in _named_here:
        return None
    name = str(mlflow.get_run(run_id).info.run_name or "")
    # MLflow does not record whether it made up a name such as bold-cat-123, so its lists of words decide.
    words = re.fullmatch(r"([a-z]+)-([a-z]+)-\d+", name)
    is_random = words and words[1] in _GENERATOR_PREDICATES and words[2] in _GENERATOR_NOUNS
    return None if is_random or not name else name


@contextlib.contextmanager
def reopen(run_id: str) -> Iterator[None]:
    """Work in the run of a variant, to log more to it."""
    import mlflow

    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield
        return
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    ended = run.data.tags.get(names.ENDED) or run.info.end_time
    # Before it is RUNNING again: the process that built it is gone, and another step would end its run.
    retried(client.set_tag, run_id, names.PROCESS, processes.identity())
    if ended and names.ENDED not in run.data.tags:
        retried(client.set_tag, run_id, names.ENDED, str(ended))
    with mlflow.start_run(run_id=run_id, nested=active is not None):
        yield
    if ended:
        # What is logged later does not make the build last longer.
        client.set_terminated(run_id, "FINISHED", int(ended))


def active_run_id() -> str:
    """Return the id of the run that the step works in."""
    import mlflow

    active = mlflow.active_run()
    if active is None:
        raise RuntimeError("no run is active")
    run_id: str = active.info.run_id
    return run_id


def log_params(params: dict[str, str]) -> None:
    """Log parameters to the active run. MLflow refuses to change those that `mlflow run` has logged already."""
    import mlflow

    logged = mlflow.get_run(active_run_id()).data.params
    mlflow.log_params({key: value for key, value in params.items() if key not in logged})
