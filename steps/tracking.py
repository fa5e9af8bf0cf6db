"""Talk to MLflow: the only file that knows MLFLOW_* and starts runs.

A step's run is the one that `mlflow run` started, or a new one; inside another step's run it is a child
of that. So the same code gives a variant its run in a single build, in a sweep and in main.
"""

import contextlib
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps import processes
from steps.errors import StepError
from steps.quiet import quiet

PACKAGES = ("mlflow", "transformers", "torch", "onnxruntime-genai", "onnxruntime", "tokenizers", "hydra-core")
FINGERPRINT = "phi3.fingerprint"
PROCESS = "phi3.process"
# The names of variables whose values are told to nobody.
SECRET = re.compile(r"TOKEN($|_)|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|ACCESS_KEY|CONNECTION_STRING")


@dataclass(frozen=True)
class Variant:
    """A READY logged model of this project, and the run that built it."""

    model_id: str
    run_id: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: tuple[tuple[str, str | None, float], ...]  # key, digest of the dataset it was measured on, value
    run_artifacts: str | None = None  # where the run's artifacts are, if it is known already

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


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
            f"The store {_without_secrets(mlflow.get_tracking_uri())} cannot be opened: "
            f"{str(error).strip().splitlines()[0]}. Set MLFLOW_TRACKING_URI to one that can; without it the store is "
            "./mlflow.db."
        ) from None
    check_server()
    _claim_project_run(client, mlflow.get_tracking_uri())
    return client


def experiment_id() -> str:
    """The experiment that `mlflow run` or MLFLOW_EXPERIMENT_NAME names, else the default one."""
    from mlflow.tracking.fluent import _get_experiment_id

    return _get_experiment_id()


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


@contextlib.contextmanager
def run(name: str, tags: dict[str, str] | None = None) -> Iterator[Any]:
    """A step's run: the project's, a new one, or a child of the run that is active already."""
    import mlflow

    nested = mlflow.active_run() is not None
    tags = {PROCESS: processes.identity()} | (tags or {})
    with mlflow.start_run(run_name=name, nested=nested, tags=tags) as active:
        mlflow.set_tags({"mlflow.runName": name} | _cleaned(active.data.tags))
        if not nested and mlflow.get_tracking_uri().startswith("http"):
            say(
                f"Run {name}: {interface_address()}/#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
            )
        yield active


def _cleaned(tags: dict[str, str]) -> dict[str, str]:
    """The tags that hold a password: `mlflow run` logs the address that the project was cloned from as it is."""
    return {key: redacted(value) for key, value in tags.items() if redacted(value) != value}


def redacted(text: str) -> str:
    """A text without the user names and passwords of addresses, and without the environment's secrets."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def _secrets() -> set[str]:
    """The environment's secrets: values by the names of their variables, and what stands before the @ of addresses."""
    named = {value for name, value in os.environ.items() if SECRET.search(name)}
    inside = {found[1] for value in os.environ.values() if (found := re.match(r"[\w+.-]+://(\S+)@", value))}
    return {secret for secret in named | inside if len(secret) >= 8}


@contextlib.contextmanager
def reopened(run_id: str) -> Iterator[Any]:
    """The run of a variant, to log more to it."""
    import mlflow

    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield active
        return
    # Before it is RUNNING again: the process that built it is gone, and another step would end its run.
    mlflow.MlflowClient().set_tag(run_id, PROCESS, processes.identity())
    with mlflow.start_run(run_id=run_id, nested=active is not None) as reopened_run:
        yield reopened_run


def log_params(params: dict[str, Any]) -> None:
    """Log the resolved configuration. What `mlflow run` has logged of -P stays as it was typed."""
    import mlflow

    there = mlflow.get_run(mlflow.active_run().info.run_id).data.params
    mlflow.log_params({key: text(value) for key, value in params.items() if key not in there})


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested configuration; the name of a group stands under the group's own key."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix.rstrip(".") if key == "name" and prefix else f"{prefix}{key}"] = value
    return flat


def text(value: Any) -> str:
    """A value as people type it with -P."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)


def variants(client, experiment: str) -> list[Variant]:
    """Every variant of the experiment that is whole (READY) and whose run was not deleted, oldest first."""
    models = [
        model
        for model in logged_models(client, experiment)
        # A filter on status finds nothing in MLflow's SQL store.
        if str(model.status) == "READY" and FINGERPRINT in model.tags
    ]
    # Deleting a run leaves its model READY.
    artifacts = _artifacts_of_runs(client, experiment) if models else {}
    models.sort(key=lambda model: model.creation_timestamp)
    return [as_variant(model, artifacts[model.source_run_id]) for model in models if model.source_run_id in artifacts]


def logged_models(client, experiment: str, condition: str | None = None) -> Iterator[Any]:
    """The LoggedModels of the experiment, all pages of them."""
    token = None
    while True:
        page = client.search_logged_models([experiment], filter_string=condition, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _artifacts_of_runs(client, experiment: str) -> dict[str, str]:
    """Where the artifacts are of each run that built a variant and was not deleted, by its id."""
    found, token = {}, None
    while True:
        page = client.search_runs([experiment], f"tags.`{FINGERPRINT}` LIKE '%'", page_token=token)
        found |= {run.info.run_id: run.info.artifact_uri for run in page}
        if not (token := page.token):
            return found


def as_variant(model, run_artifacts: str | None = None) -> Variant:
    """The variant that a LoggedModel of MLflow is."""
    # A model keeps every value that was ever logged: the latest comes last and counts.
    logged = sorted(model.metrics or [], key=lambda metric: (metric.timestamp, metric.step))
    metrics = tuple((metric.key, metric.dataset_digest, metric.value) for metric in logged)
    tags, params = dict(model.tags), dict(model.params)
    return Variant(model.model_id, model.source_run_id, model.name, tags, params, metrics, run_artifacts)


def load_artifact(variant: Variant, path: str) -> Any:
    """A JSON artifact of the run that built a variant; raises whatever its store raises."""
    import mlflow

    # By the run's own address: that of `runs:/` is looked for among the run's models as well.
    folder = variant.run_artifacts or mlflow.MlflowClient().get_run(variant.run_id).info.artifact_uri
    with quiet():
        return mlflow.artifacts.load_dict(f"{folder}/{path}")


def environment() -> dict[str, str]:
    """Versions of the packages that decide what a variant answers, and of Python and the platform."""
    return {package: version(package) for package in PACKAGES} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """The commit of the project, with a mark if files have changed since; None outside a repository."""
    with contextlib.suppress(Exception):
        from git import Repo

        repository = Repo(Path(__file__).resolve().parent, search_parent_directories=True)
        return repository.head.commit.hexsha + ("-dirty" if repository.is_dirty() else "")
    return None


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
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLFLOW_") and not re.search("TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", name.upper())
    }
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


def write_traces_in_turn() -> None:
    """Have MLflow write traces in one thread: its ten would lock one another out of SQLite, and traces get lost."""
    os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_WORKERS", "1")


def store_arguments() -> str:
    """What `mlflow ui` needs to show this store; nothing where it would find it by itself."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    default = Path("mlflow.db").resolve()
    if uri == "sqlite:///mlflow.db" or uri == f"sqlite:///{default}":
        return ""
    # By its variable, since an address may hold a password.
    return ' --backend-store-uri "$MLFLOW_TRACKING_URI"' if "://" in uri and not uri.startswith("http") else ""


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
            f"The tracking server {_without_secrets(uri)} {fault} ({_reason(error)}). Start it, or set "
            "MLFLOW_TRACKING_URI to one that runs; without it the store is ./mlflow.db."
        ) from None


def _gone() -> str:
    import mlflow

    return (
        f"The tracking server {_without_secrets(mlflow.get_tracking_uri())} went away and was not back in time. "
        "What is whole so far is kept: start it, and run the same command again."
    )


def _refused(status: str) -> str:
    import mlflow

    return (
        f"The tracking server {_without_secrets(mlflow.get_tracking_uri())} refused the request (HTTP {status}): set "
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
    return _without_secrets(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"


def _claim_project_run(client, uri: str) -> None:
    """Say on the run that `mlflow run` made which process is at work on it; refuse to start where it is not there."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    from mlflow.exceptions import MlflowException

    try:
        client.set_tag(run_id, PROCESS, processes.identity())
    except MlflowException:
        raise StepError(
            f"The run {run_id} that `mlflow run` started is not in {_without_secrets(uri)}, seen from "
            f"{Path.cwd()}. Start `mlflow run .` in the project's directory, or set MLFLOW_TRACKING_URI "
            "to an absolute path (sqlite:////…/mlflow.db) or a server."
        ) from None


def _without_secrets(uri: str) -> str:
    """An address without the user name and password that it may hold."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def say(line: str) -> None:
    """Tell the user how far the step is."""
    print(line, flush=True, file=sys.stdout)
