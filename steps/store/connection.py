"""Reach the store: MLflow's client, whether the server answers, and what other processes are told of it."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from steps.errors import StepError
from steps.redaction import SECRET, without_secrets
from steps.store import processes


def connect():
    """The MLflow client; one clear line if the tracking server does not answer within seconds."""
    # Nothing that we load needs a pickle, and a pickle can run anything.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow's links to a run hold the password of the server's address.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # A server that restarts is waited for, for two minutes in all; MLflow's own settings wait for four.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    # What it waited for is told in one line, when it is over.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    import mlflow
    from mlflow import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient()
    except (ImportError, SQLAlchemyError) as error:
        raise StepError(
            f"The store {without_secrets(mlflow.get_tracking_uri())} cannot be opened: "
            f"{str(error).strip().splitlines()[0]}. Set MLFLOW_TRACKING_URI to one that can; without it the store is "
            "./mlflow.db."
        ) from None
    check_server()
    _claim_project_run(client, mlflow.get_tracking_uri())
    return client


def _claim_project_run(client, uri: str) -> None:
    """Say on the run that `mlflow run` made which process is at work on it; refuse to start where it is not there."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    from mlflow.exceptions import MlflowException

    try:
        client.set_tag(run_id, processes.TAG, processes.identity())
    except MlflowException:
        raise StepError(
            f"The run {run_id} that `mlflow run` started is not in {without_secrets(uri)}, seen from "
            f"{Path.cwd()}. Start `mlflow run .` in the project's directory, or set MLFLOW_TRACKING_URI "
            "to an absolute path (sqlite:////…/mlflow.db) or a server."
        ) from None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what MLflow refuses, or a server that went away, into sentences for the user."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        check_server("went away and has not come back")
        said = str(error).strip().splitlines()[0][:500]
        if re.match("API request to .* failed with exception", said):
            raise StepError(_gone()) from error
        if refused := re.match(r"API request to .* failed with error code (40[13])\b", said):
            raise StepError(_refused(refused[1])) from error
        raise StepError(f"MLflow: {said}") from error


def check_server(fault: str = "does not answer") -> None:
    """Ask a tracking server for its health, so that a wrong address is told in seconds."""
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # MLflow's own request knows the user's certificates and tokens.
        http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=10)
    except MlflowException as error:
        raise StepError(
            f"The tracking server {without_secrets(uri)} {fault} ({_reason(error)}). Start it, or set "
            "MLFLOW_TRACKING_URI to one that runs; without it the store is ./mlflow.db."
        ) from None


def _gone() -> str:
    import mlflow

    return (
        f"The tracking server {without_secrets(mlflow.get_tracking_uri())} went away and was not back in time. "
        "What is whole so far is kept: start it, and run the same command again."
    )


def _refused(status: str) -> str:
    import mlflow

    return (
        f"The tracking server {without_secrets(mlflow.get_tracking_uri())} refused the request (HTTP {status}): set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it accepts."
    )


def _reason(error: BaseException) -> str:
    """The name of the error at the root: what MLflow says of it holds addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return type(error).__name__


def interface_address() -> str:
    """Where the user interface is: the tracking server's own, or `mlflow ui` on this machine."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    return without_secrets(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def ui_arguments() -> str:
    """What `mlflow ui` needs to show this store; nothing where it would find it by itself."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    default = Path("mlflow.db").resolve()
    if uri == "sqlite:///mlflow.db" or uri == f"sqlite:///{default}":
        return ""
    # By its variable, since an address may hold a password.
    return ' --backend-store-uri "$MLFLOW_TRACKING_URI"' if "://" in uri and not uri.startswith("http") else ""


def registry_file() -> Path | None:
    """The SQLite file that the registry is kept in; None where it is a server or another database."""
    import mlflow

    scheme, _, path = mlflow.get_registry_uri().partition(":///")
    return Path(path.partition("?")[0]).resolve() if scheme == "sqlite" and path else None


def child_environment(folder: Path) -> dict[str, str]:
    """The environment of a process in `folder` that sees this store, but neither the project nor its run."""
    import mlflow

    run_alone = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in run_alone}
    addresses = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    # A relative address of a file would be another file there.
    absolute = {
        name: re.sub(r"^sqlite:///(?=[^/])", f"sqlite:///{Path.cwd()}/", uri) for name, uri in addresses.items()
    }
    # The programs of this environment, which need not be activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return kept | absolute | {"TMPDIR": str(folder), "PATH": path}


def storeless_environment() -> dict[str, str]:
    """The environment for a process that needs no store: without MLflow's settings and without secrets."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and not SECRET.search(name)
    }
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def write_traces_in_turn() -> None:
    """Have MLflow write traces in one thread: its ten would lock one another out of SQLite, and traces get lost."""
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_WORKERS", "1")
