"""Connect to MLflow's store, and turn its failures into messages for the user."""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from steps.checkpoints.cache import cache_directory
from steps.config.paths import user_directory
from steps.errors import StepError
from steps.output import activity
from steps.redaction import without_secrets
from steps.store import address, integrity, names, processes
from steps.store.collisions import retried
from steps.store.opening import SQLITE_WAIT, is_writable, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIXED_SETTINGS = {
    # Nothing that this project loads needs a pickle, and a pickle can run any code.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow's links to a run would show the password in the server's address.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
DEFAULT_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Wait two minutes in total for a server that restarts; MLflow's own settings wait for four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
# The system's numbers for a missing right and a read-only file system.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK = "the disk is full. Free some space, and run the same command again: finished work is kept."
READ_ONLY = (
    "The store {} cannot be written. Set MLFLOW_TRACKING_URI to a store that can be written (sqlite:////…/mlflow.db) "
    "or to a server."
)
LOCKED = (
    "The store {} was locked by another process for {} seconds. Finished work is kept: end that process or wait for "
    "it, and run the same command again. For many processes at once, use a server: MLFLOW_TRACKING_URI=http://…"
)


def connect() -> "MlflowClient":
    """Return MLflow's client, and tag the run that `mlflow run` started with this process.

    Raises:
        StepError: The store cannot be opened, the tracking server does not answer within seconds, or the run of
            `mlflow run` is in another store.
    """
    os.environ.update(FIXED_SETTINGS)
    for name, value in DEFAULT_SETTINGS.items():
        os.environ.setdefault(name, value)
    # One line at the end reports an unreachable server, so the warning of each retry is hidden.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        if uri := os.environ.get(name):
            os.environ[name] = address.absolute(uri, user_directory())
    if os.environ.get("PHI3_CACHE_DIR"):
        # Models have their own idea of where a relative path begins.
        os.environ["PHI3_CACHE_DIR"] = str(cache_directory())
    # Likewise for a database: MLflow logs each error with a long traceback before it raises it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    from mlflow.exceptions import MlflowException

    try:
        with activity("opening the store"):
            client = open_store()
    except (StepError, MlflowException):
        raise
    except Exception as error:  # whatever SQLAlchemy, Alembic or the driver of a database raises
        if "database is locked" in str(error):
            raise StepError(LOCKED.format(safe_tracking_uri(), SQLITE_WAIT)) from None
        raise StepError(
            f"The store {safe_tracking_uri()} cannot be opened: {str(error).strip().splitlines()[0]}. "
            "Set MLFLOW_TRACKING_URI to a store that can be opened, or unset it to use ./mlflow.db. If a process was "
            "killed while it made this store, delete the file."
        ) from None
    check_server()
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        _claim_project_run(client, run_id)
    return client


def _claim_project_run(client: "MlflowClient", run_id: str) -> None:
    """Tag the run that `mlflow run` started with this process, so that a later step can tell whether it was killed.

    The step works in the experiment of that run, even if MLFLOW_EXPERIMENT_NAME names another one than the option
    `--experiment-name` did.
    """
    from mlflow.exceptions import MlflowException

    try:
        retried(client.set_tag, run_id, names.PROCESS, processes.identity())
        os.environ["MLFLOW_EXPERIMENT_ID"] = client.get_run(run_id).info.experiment_id
        os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise StepError(
            f"The run {run_id} that `mlflow run` started is not in {safe_tracking_uri()} (current directory: "
            f"{Path.cwd()}). Set MLFLOW_TRACKING_URI to an absolute path (sqlite:////…/mlflow.db) or a server."
        ) from None


def check_writable(client: "MlflowClient", experiment: str) -> None:
    """Raise StepError if the store's file, or the folder of an experiment's artifacts, is read-only."""
    import mlflow

    file = address.sqlite_file(mlflow.get_tracking_uri())
    if file and not is_writable(file):
        raise StepError(READ_ONLY.format(file))
    folder = integrity.local_folder(client.get_experiment(experiment).artifact_location)
    if file and folder and not folder.parent.exists() and (file.parent / folder.parent.name).is_dir():
        raise StepError(
            f"The experiment keeps its files in {folder}, which is gone: the store was moved. Move it back, "
            "or begin a new experiment here: MLFLOW_EXPERIMENT_NAME=…, or `mlflow run --experiment-name …`."
        )
    if folder and not is_writable(folder):
        raise StepError(
            f"The experiment keeps its files in {folder}, which cannot be written. Choose another experiment, or make "
            "one where files can be written: MLFLOW_EXPERIMENT_NAME=…, or `mlflow run --experiment-name …`."
        )


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors from MLflow, including a lost server, into a StepError that says what to do."""
    try:
        yield
    except Exception as error:
        plain = in_plain_words(error)
        if plain is error:
            raise
        raise plain from error


def in_plain_words(error: Exception) -> Exception:
    """Return the StepError that says what to do about an error of the store or the disk; any other error as it is.

    Raises:
        StepError: It is an error of the store, and the tracking server does not answer any more.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, MlflowException | RequestException):
        check_server("went away and has not come back")
        return StepError(_store_problem(str(error).strip()))
    if isinstance(error, OSError) and error.errno in FULL:
        return StepError(f"{error.filename or 'A file'} cannot be written: {FULL_DISK}")
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
        return StepError(f"{error.filename or 'A file'} cannot be written or read: {error.strerror}.")
    return error


def _store_problem(message: str) -> str:
    """Return what an error message of MLflow means for the user."""
    if "attempt to write a readonly database" in message:
        return READ_ONLY.format(safe_tracking_uri())
    if "database or disk is full" in message:
        return f"The store {safe_tracking_uri()} cannot be written: {FULL_DISK}"
    if "database is locked" in message:
        return LOCKED.format(safe_tracking_uri(), SQLITE_WAIT)
    line = message.splitlines()[0][:500]
    if re.match("API request to .* failed with exception", line):
        return (
            f"The tracking server {safe_tracking_uri()} went away and did not come back in time. "
            "Finished work is kept: start the server, and run the same command again."
        )
    if status := re.match(r"API request to .* failed with error code (40[13])\b", line):
        return (
            f"The tracking server {safe_tracking_uri()} refused the request (HTTP {status[1]}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to credentials "
            "that it accepts."
        )
    return f"MLflow: {line}"


def check_server(problem: str = "does not answer") -> None:
    """Raise StepError within seconds if a tracking server is configured but does not answer.

    Args:
        problem: What to say about the server, after its address.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # MLflow's own request uses the certificates and tokens that the user has configured.
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        http_request(credentials, "/health", "GET", max_retries=0, timeout=10)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise StepError(
            f"The tracking server {safe_tracking_uri()} {problem} ({_root_cause(error)}). Start it, set "
            "MLFLOW_TRACKING_URI to a running one, or unset it to use ./mlflow.db."
        ) from None


def safe_tracking_uri() -> str:
    """Return the tracking URI without credentials."""
    import mlflow

    return without_secrets(mlflow.get_tracking_uri())


def _root_cause(error: BaseException) -> str:
    """Return the type of the first error in a chain: MLflow's own message repeats the address."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return type(error).__name__
