"""The model registry: who is champion, and making another one champion."""

from dataclasses import dataclass
from typing import Any

from steps.errors import StepError
from steps.promotion.rank import Candidate
from steps.tracking import FINGERPRINT, Variant, as_variant

CHAMPION = "champion"
# A registered version does not tell by itself which LoggedModel it was made of.
MODEL_ID = "phi3.model_id"


@dataclass(frozen=True)
class Champion:
    """The version that the alias names, and the variant behind it."""

    version: str
    variant: Variant


def champion(client: Any, registered_model: str) -> Champion | None:
    """The champion; None where there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(registered_model, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    model_id = version.tags.get(MODEL_ID)
    if model_id is None:
        raise StepError(
            f"{registered_model}@{CHAMPION} (version {version.version}) was not promoted by this project, so nothing "
            f"is known of it. Give another name (-P registered_model=…), or delete the alias."
        )
    return Champion(str(version.version), as_variant(client.get_logged_model(model_id)))


def promote(client: Any, registered_model: str, candidate: Candidate, tags: dict[str, str], description: str) -> str:
    """Register a candidate's model, say why on the version, then move the alias; returns the version."""
    import mlflow

    version = _registered(client, registered_model, candidate) or mlflow.register_model(
        f"models:/{candidate.model_id}",
        registered_model,
        tags={FINGERPRINT: candidate.fingerprint, MODEL_ID: candidate.model_id},
    )
    for key, value in tags.items():
        client.set_model_version_tag(registered_model, version.version, key, value)
    client.update_model_version(registered_model, version.version, description=description)
    client.set_registered_model_alias(registered_model, CHAMPION, version.version)
    return str(version.version)


def _registered(client: Any, registered_model: str, candidate: Candidate) -> Any | None:
    """The version that a model has already, so that the same model is not registered twice."""
    versions = client.search_model_versions(f"name = '{registered_model}'")
    return next((version for version in versions if version.tags.get(MODEL_ID) == candidate.model_id), None)
