"""Talk to MLflow: the only file that knows MLFLOW_* and starts runs.

A step's run is the one that `mlflow run` started, or a new one; inside another step's run it is a child
of that. So the same code gives a variant its run in a single build, in a sweep and in main.
"""

import contextlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.errors import StepError

PACKAGES = ("mlflow", "transformers", "torch", "onnxruntime-genai", "onnxruntime", "tokenizers", "hydra-core")
FINGERPRINT = "phi3.fingerprint"


@dataclass(frozen=True)
class Variant:
    """A READY logged model of this project, and the run that built it."""

    model_id: str
    run_id: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: tuple[tuple[str, str | None, float], ...]  # key, digest of the dataset it was measured on, value

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


def connect():
    """The MLflow client; one clear line if the tracking server does not answer within seconds."""
    # Nothing that we load needs a pickle, and a pickle can run anything.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    uri = mlflow.get_tracking_uri()
    _check_server(uri)
    _check_project_run(client, uri)
    return client


def experiment_id() -> str:
    """The experiment that `mlflow run` or MLFLOW_EXPERIMENT_NAME names, else the default one."""
    from mlflow.tracking.fluent import _get_experiment_id

    return _get_experiment_id()


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what MLflow refuses, or a server that went away, into sentences for the user."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        said = str(error).strip().splitlines()[0][:500]
        raise StepError(f"MLflow: {re.sub(r'://[^/@ ]+@', '://', said)}") from error


@contextlib.contextmanager
def run(name: str, tags: dict[str, str] | None = None) -> Iterator[Any]:
    """A step's run: the project's, a new one, or a child of the run that is active already."""
    import mlflow

    nested = mlflow.active_run() is not None
    with mlflow.start_run(run_name=name, nested=nested, tags=tags) as active:
        mlflow.set_tag("mlflow.runName", name)
        yield active


@contextlib.contextmanager
def reopened(run_id: str) -> Iterator[Any]:
    """The run of a variant, to log more to it."""
    import mlflow

    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield active
        return
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
    """Every variant of the experiment that is whole (READY), oldest first."""
    from mlflow.entities import LoggedModelStatus

    models, token = [], None
    while True:
        # A filter on status finds nothing in MLflow's SQL store.
        page = client.search_logged_models([experiment], page_token=token)
        models += [m for m in page if m.status == LoggedModelStatus.READY and FINGERPRINT in m.tags]
        if not (token := page.token):
            break
    models.sort(key=lambda model: model.creation_timestamp)
    return [as_variant(model) for model in models]


def as_variant(model) -> Variant:
    """The variant that a LoggedModel of MLflow is."""
    # A model keeps every value that was ever logged: the latest comes last and counts.
    logged = sorted(model.metrics or [], key=lambda metric: (metric.timestamp, metric.step))
    metrics = tuple((metric.key, metric.dataset_digest, metric.value) for metric in logged)
    return Variant(model.model_id, model.source_run_id, model.name, dict(model.tags), dict(model.params), metrics)


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


def store_arguments() -> str:
    """What `mlflow ui` needs to show this store; nothing where it would find it by itself."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    default = Path("mlflow.db").resolve()
    if uri == "sqlite:///mlflow.db" or uri == f"sqlite:///{default}":
        return ""
    # By its variable, since an address may hold a password.
    return ' --backend-store-uri "$MLFLOW_TRACKING_URI"' if "://" in uri and not uri.startswith("http") else ""


def _check_server(uri: str) -> None:
    """Ask a tracking server for its health, so that a wrong address is told in seconds."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=10)
    except requests.RequestException as error:
        reason = type(error).__name__
        raise StepError(
            f"The tracking server {_without_secrets(uri)} does not answer ({reason}). Start it, or set "
            "MLFLOW_TRACKING_URI to one that runs; without it the store is ./mlflow.db."
        ) from None


def _check_project_run(client, uri: str) -> None:
    """Refuse to start where the run that `mlflow run` made is not in the store that this step sees."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException:
        raise StepError(
            f"The run {run_id} that `mlflow run` started is not in {_without_secrets(uri)}, seen from "
            f"{Path.cwd()}. Start `mlflow run .` in the project's directory, or set MLFLOW_TRACKING_URI "
            "to an absolute path (sqlite:////…/mlflow.db) or a server."
        ) from None


def _without_secrets(uri: str) -> str:
    """An address without the user name and password that it may hold."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def say(line: str) -> None:
    """Tell the user how far the step is."""
    print(line, flush=True, file=sys.stdout)
