"""Find the variants that are logged in MLflow, with their configuration, and read their artifacts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.config.parameters import from_params
from steps.config.schema import PRECISIONS, SOURCES, BuildConfig, Model, Precision
from steps.errors import StepError
from steps.interfaces import get_interface
from steps.interfaces.interface import Interface
from steps.modes import MODES, get_mode
from steps.modes.mode import Mode
from steps.output import suppress_output
from steps.redaction import redacted
from steps.store import names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


@dataclass(frozen=True)
class Variant:
    """A READY LoggedModel of this project, and the run that built it.

    Attributes:
        metrics: Key, digest of the dataset it was measured on (None for none), value; the latest value last.
        run_artifacts: Where the run's artifacts are; None if it was not looked up.
    """

    model_id: str
    run_id: str
    name: str
    tags: dict[str, str]
    config: BuildConfig
    metrics: tuple[tuple[str, str | None, float], ...]
    run_artifacts: str | None = None

    @property
    def uri(self) -> str:
        """Return the address that MLflow loads the model from."""
        return f"models:/{self.model_id}"

    @property
    def fingerprint(self) -> str:
        """Return the sha256 over everything that makes the variant."""
        return self.tags[names.FINGERPRINT]

    @property
    def mode(self) -> Mode:
        """Return the mode that wraps it."""
        return get_mode(self.config.mode.name)

    @property
    def interface(self) -> Interface:
        """Return the interface: what its clients send and get."""
        return get_interface(self.config.interface)


def find_variants(client: MlflowClient, experiment: str) -> list[Variant]:
    """Return every READY variant of an experiment, oldest first.

    A model whose run was deleted, or whose mode this version does not have, is left out.
    """
    models = [
        model
        for model in logged_models(client, experiment)
        # A filter on status finds nothing in MLflow's SQL store.
        if str(model.status) == "READY" and names.FINGERPRINT in model.tags and model.params.get("mode") in MODES
    ]
    # Deleting a run leaves its model READY.
    artifacts = run_artifacts_by_id(client, experiment) if models else {}
    models.sort(key=lambda model: model.creation_timestamp)
    return [to_variant(model, artifacts[model.source_run_id]) for model in models if model.source_run_id in artifacts]


def elsewhere(client: MlflowClient, experiment: str) -> str:
    """Return a sentence about another experiment that has variants, after a space; "" if none has."""
    others = {other.experiment_id: other.name for other in client.search_experiments()}
    others.pop(experiment, None)
    for model in client.search_logged_models(list(others)) if others else []:
        if names.FINGERPRINT in model.tags and str(model.status) == "READY":
            name = others[model.experiment_id]
            return f" The experiment '{name}' has some: set MLFLOW_EXPERIMENT_NAME={shlex.quote(name)}."
    return ""


def read_variant(client: MlflowClient, model_id: str) -> Variant:
    """Return the variant with this LoggedModel as it is now; raises MlflowException if there is none."""
    return to_variant(client.get_logged_model(model_id))


def variant_of_run(client: MlflowClient, run_id: str) -> Variant:
    """Return the READY variant that a run built, in whichever experiment; raises StepError if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException:
        raise StepError(f"run_id must be the run of a READY variant, got '{run_id}'.") from None
    if info.lifecycle_stage != "active":
        raise StepError(f"The run {run_id} was deleted: `mlflow runs restore --run-id {run_id}` brings it back.")
    variants = [variant for variant in find_variants(client, info.experiment_id) if variant.run_id == run_id]
    if not variants:
        raise StepError(f"run_id must be the run of a READY variant, got '{run_id}': it has no READY model.")
    return variants[-1]


def logged_models(client: MlflowClient, experiment: str, condition: str | None = None) -> Iterator[LoggedModel]:
    """Yield the LoggedModels of an experiment from all pages."""
    token = None
    while True:
        page = client.search_logged_models([experiment], filter_string=condition, page_token=token)
        yield from page
        if not (token := page.token):
            return


def to_variant(model: LoggedModel, run_artifacts: str | None = None) -> Variant:
    """Return a LoggedModel as a variant, with the configuration that it was built from."""
    # A model keeps every value that was ever logged: the latest comes last and counts.
    logged = sorted(model.metrics or [], key=lambda metric: (metric.timestamp, metric.step))
    return Variant(
        model_id=model.model_id,
        run_id=model.source_run_id or "",
        name=model.name,
        tags=dict(model.tags),
        config=_config(model.params),
        metrics=tuple((metric.key, metric.dataset_digest, metric.value) for metric in logged),
        run_artifacts=run_artifacts,
    )


def load_artifact(variant: Variant, path: str) -> Any:
    """Return a JSON artifact of the run that built a variant; raises whatever its store raises."""
    import mlflow

    # The run's own address: MLflow would look for `runs:/` among the run's models as well.
    folder = variant.run_artifacts or mlflow.MlflowClient().get_run(variant.run_id).info.artifact_uri
    with suppress_output():
        return mlflow.artifacts.load_dict(f"{folder}/{path}")


def artifact_folder(variant: Variant) -> str:
    """Return where the artifacts of a variant's run are, for the user."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        folder = variant.run_artifacts or mlflow.MlflowClient().get_run(variant.run_id).info.artifact_uri
    except MlflowException:
        return f"its run, which is not in {redacted(mlflow.get_tracking_uri())}"
    return redacted(folder)


def is_local(location: str) -> bool:
    """Return True if artifacts are in a folder of this machine."""
    from mlflow.utils.uri import is_local_uri

    return bool(is_local_uri(location))  # type: ignore[no-untyped-call]


def lost_run(client: MlflowClient, variant: Variant) -> str | None:
    """Return a sentence, without its full stop, about the run of a variant if it was deleted; None if it is there."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(variant.run_id)
    except MlflowException:
        return f"its run {variant.run_id} is gone from {redacted(mlflow.get_tracking_uri())}"
    if run.info.lifecycle_stage == "active":
        return None
    return f"its run {variant.run_id} was deleted (`mlflow runs restore --run-id {variant.run_id}` brings it back)"


def _config(params: dict[str, str]) -> BuildConfig:
    empty = BuildConfig(
        model=SOURCES.get(params.get("model.source", ""), Model)(),
        mode=get_mode(params["mode"]).settings(),
        precision=PRECISIONS.get(params.get("precision", ""), Precision)(),
    )
    return from_params(params, empty)


def run_artifacts_by_id(client: MlflowClient, experiment: str) -> dict[str, str]:
    """Return where the artifacts are of each run that built a variant and was not deleted, by its id."""
    artifacts: dict[str, str] = {}
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{names.FINGERPRINT}` LIKE '%'", page_token=token)
        artifacts |= {run.info.run_id: run.info.artifact_uri for run in page}
        if not (token := page.token):
            return artifacts
