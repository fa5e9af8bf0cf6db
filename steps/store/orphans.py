"""Clean up after builds that ended before their model was complete: a run, a model, some of its files.

Reads the runs that this project's steps started, and their LoggedModels. If the process of a run is gone, the run and
its unfinished models are marked FAILED and the models' files are removed. A living step is left alone, in whichever
process or on whichever machine it runs. If it were mistaken for dead, it would still set the right status when it ends.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from steps.output import echo
from steps.store import connection, names, processes
from steps.store.names import FINGERPRINT
from steps.store.variants import logged_models

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


def fail_orphans(client: "MlflowClient", experiment: str) -> None:
    """Mark each RUNNING run and PENDING model whose process is gone as FAILED. Every step starts with this."""
    pending = {
        model.source_run_id
        for model in logged_models(client, experiment)
        if str(model.status) == "PENDING" and model.source_run_id
    }
    condition = f"attributes.status = 'RUNNING' and tags.`{names.PROCESS}` LIKE '%'"
    running = list(client.search_runs([experiment], condition))
    for run_id in pending - {run.info.run_id for run in running}:
        # `mlflow run` marks the run of a killed step as FAILED, but not its model.
        if _has_ended(client, run_id):
            discard(client, experiment, run_id)
    for run in running:
        if processes.is_gone(run.data.tags[names.PROCESS]):
            _end_killed_run(client, experiment, run)


@contextlib.contextmanager
def discard_on_failure(client: "MlflowClient", run: "Run") -> Iterator[None]:
    """Discard the run's unfinished model if the block raises."""
    try:
        yield
    except BaseException:
        # If the server is gone, discarding fails too; the first error is the one to report.
        with contextlib.suppress(Exception):
            connection.check_server()
            discard(client, run.info.experiment_id, run.info.run_id)
        raise


def discard(client: "MlflowClient", experiment: str, run_id: str) -> None:
    """Mark the run's models that are not complete variants as FAILED, and remove their files."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for model in _models_of_run(client, experiment, run_id):
        if _is_complete(model):
            continue
        client.finalize_logged_model(model.model_id, "FAILED")
        # Not every kind of store can remove files; a FAILED model is never used anyway.
        with contextlib.suppress(Exception):
            get_artifact_repository(model.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]


def _end_killed_run(client: "MlflowClient", experiment: str, run: "Run") -> None:
    """End a run whose process is gone: FINISHED if its variant is complete and only an evaluation was killed."""
    run_id = run.info.run_id
    discard(client, experiment, run_id)
    status = "FINISHED" if any(map(_is_complete, _models_of_run(client, experiment, run_id))) else "FAILED"
    ended = run.data.tags.get(names.ENDED)
    client.set_terminated(run_id, status, int(ended) if ended and status == "FINISHED" else None)
    echo(f"The process of run {run.info.run_name} ({run_id}) was killed: it is marked {status}.")


def _has_ended(client: "MlflowClient", run_id: str) -> bool:
    """Return True if this project's steps started the run and it has ended."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return False
    return names.PROCESS in run.data.tags and run.info.status != "RUNNING"


def _models_of_run(client: "MlflowClient", experiment: str, run_id: str) -> "list[LoggedModel]":
    return list(logged_models(client, experiment, f"source_run_id = '{run_id}'"))


def _is_complete(model: "LoggedModel") -> bool:
    return str(model.status) == "READY" and FINGERPRINT in model.tags
