"""Runs and variants in MLflow: start and reopen the one, find the other.

A step's run is the one that `mlflow run` started, or a new one; inside another step's run it is a child
of that. So the same code gives a variant its run in a single build, in a sweep and in main.
"""

import contextlib
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps import processes, store
from steps.quiet import quiet
from steps.redaction import redacted

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
    run_artifacts: str | None = None  # where the run's artifacts are, if it is known already

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"


def experiment_id() -> str:
    """The experiment that `mlflow run` or MLFLOW_EXPERIMENT_NAME names, else the default one."""
    from mlflow.tracking.fluent import _get_experiment_id

    return _get_experiment_id()


@contextlib.contextmanager
def run(name: str, tags: dict[str, str] | None = None) -> Iterator[Any]:
    """A step's run: the project's, a new one, or a child of the run that is active already."""
    import mlflow

    nested = mlflow.active_run() is not None
    tags = {processes.TAG: processes.identity()} | (tags or {})
    with mlflow.start_run(run_name=name, nested=nested, tags=tags) as active:
        mlflow.set_tags({"mlflow.runName": name} | _cleaned(active.data.tags))
        if not nested and mlflow.get_tracking_uri().startswith("http"):
            page = f"#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
            say(f"Run {name}: {store.interface_address()}/{page}")
        yield active


def _cleaned(tags: dict[str, str]) -> dict[str, str]:
    """The tags that hold a password: `mlflow run` logs the address that the project was cloned from as it is."""
    return {key: redacted(value) for key, value in tags.items() if redacted(value) != value}


@contextlib.contextmanager
def reopened(run_id: str) -> Iterator[Any]:
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


def say(line: str) -> None:
    """Tell the user how far the step is."""
    print(line, flush=True, file=sys.stdout)
