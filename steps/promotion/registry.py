"""The model registry: who is champion, and making another one champion."""

from dataclasses import dataclass
from typing import Any

from steps.promotion.rank import Candidate
from steps.tracking import FINGERPRINT, Variant, as_variant

CHAMPION = "champion"


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
    return Champion(version.version, as_variant(client.get_logged_model(version.model_id)))


def promote(client: Any, registered_model: str, candidate: Candidate, tags: dict[str, str], description: str) -> str:
    """Register a candidate's model, say why on the version, then move the alias; returns the version."""
    import mlflow

    version = _registered(client, registered_model, candidate) or mlflow.register_model(
        f"models:/{candidate.model_id}", registered_model, tags={FINGERPRINT: candidate.fingerprint}
    )
    for key, value in tags.items():
        client.set_model_version_tag(registered_model, version.version, key, value)
    client.update_model_version(registered_model, version.version, description=description)
    client.set_registered_model_alias(registered_model, CHAMPION, version.version)
    return version.version


def _registered(client: Any, registered_model: str, candidate: Candidate) -> Any | None:
    """The version that a model has already, so that the same model is not registered twice."""
    versions = client.search_model_versions(f"name = '{registered_model}'")
    return next((version for version in versions if version.model_id == candidate.model_id), None)
