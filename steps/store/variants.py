"""Find the variants that are logged in MLflow, and read their artifacts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steps.output import suppress_output
from steps.store.names import FINGERPRINT


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


def find_variants(client, experiment: str) -> list[Variant]:
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
    with suppress_output():
        return mlflow.artifacts.load_dict(f"{folder}/{path}")
