"""What a build leaves behind that ended before its model was whole: a run, a model, half of its files.

Reads the runs that this project's steps began and their LoggedModels; marks as FAILED what nobody is at work on
any more and removes its files. A step that lives is left alone, in whatever process or machine it is; were
it taken for dead after all, its end would still set its run and its model right.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from steps.output import echo
from steps.store import connection, processes
from steps.store.names import FINGERPRINT
from steps.store.variants import logged_models


def sweep(client: Any, experiment: str) -> None:
    """Mark as FAILED each RUNNING run and PENDING model whose process is gone; done at the start of each step."""
    pending = {
        model.source_run_id
        for model in logged_models(client, experiment)
        if str(model.status) == "PENDING" and model.source_run_id
    }
    running = _running(client, experiment)
    for run_id in pending - {run.info.run_id for run in running}:
        # `mlflow run` marks the run of a killed step as FAILED, but not its model.
        if _has_ended(client, run_id):
            discard(client, experiment, run_id)
    for run in running:
        if processes.is_gone(run.data.tags[processes.TAG]):
            _end(client, experiment, run)


@contextlib.contextmanager
def none_left(client: Any, run: Any) -> Iterator[None]:
    """Leave nothing half made of a model that could not be logged to a run."""
    try:
        yield
    except BaseException:
        # What went wrong is told, not that a server that is away cannot be tidied up either.
        with contextlib.suppress(Exception):
            connection.check_server()
            discard(client, run.info.experiment_id, run.info.run_id)
        raise


def discard(client: Any, experiment: str, run_id: str) -> None:
    """Mark the models of a run that are no whole variants as FAILED, and remove their files."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for model in _models(client, experiment, run_id):
        if _is_whole(model):
            continue
        client.finalize_logged_model(model.model_id, "FAILED")
        # Not every kind of store can remove files; a FAILED model is never used anyway.
        with contextlib.suppress(Exception):
            get_artifact_repository(model.artifact_location).delete_artifacts()


def _end(client: Any, experiment: str, run: Any) -> None:
    """End the run of a process that is gone; that of a whole variant, whose evaluation was killed, is FINISHED."""
    run_id = run.info.run_id
    discard(client, experiment, run_id)
    status = "FINISHED" if any(map(_is_whole, _models(client, experiment, run_id))) else "FAILED"
    client.set_terminated(run_id, status)
    echo(f"The process of run {run.info.run_name} ({run_id}) was killed: it is marked {status}.")


def _running(client: Any, experiment: str) -> list[Any]:
    """The runs that our steps began and that have not ended."""
    condition = f"attributes.status = 'RUNNING' and tags.`{processes.TAG}` LIKE '%'"
    return list(client.search_runs([experiment], condition))


def _has_ended(client: Any, run_id: str) -> bool:
    """Whether a run is one that our steps began, and is over."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return False
    return processes.TAG in run.data.tags and run.info.status != "RUNNING"


def _models(client: Any, experiment: str, run_id: str) -> list[Any]:
    return list(logged_models(client, experiment, f"source_run_id = '{run_id}'"))


def _is_whole(model: Any) -> bool:
    return str(model.status) == "READY" and FINGERPRINT in model.tags
