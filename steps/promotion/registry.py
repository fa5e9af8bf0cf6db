"""The model registry: the versions under a name, their tags, and the aliases.

Everything known about a version is in its tags. MLflow does not record which LoggedModel a version was made from, so
a tag does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steps.errors import StepError
from steps.output import suppress_output
from steps.promotion.candidate import Candidate
from steps.store import prompts
from steps.store.collisions import retried
from steps.store.names import CHALLENGER, CHAMPION, FINGERPRINT, MODEL_ID, REJECTED, VARIANT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException


@dataclass(frozen=True)
class Version:
    """A registered version of a variant's model."""

    number: str
    model_id: str
    tags: dict[str, str]
    description: str

    @property
    def rejected(self) -> str | None:
        """Return why it must not become champion; None if it may."""
        return self.tags.get(REJECTED)


@dataclass(frozen=True)
class Registry:
    """What is registered under a name, oldest first, and the version number that each alias names."""

    name: str
    versions: tuple[Version, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def version(self, number: str | None) -> Version | None:
        """Return a version by its number."""
        return next((version for version in self.versions if version.number == number), None)

    def of_model(self, model_id: str) -> list[Version]:
        """Return the versions of a LoggedModel. The first is the one to keep: one with an alias, or the oldest."""
        versions = [version for version in self.versions if version.model_id == model_id]
        return sorted(versions, key=lambda version: version.number not in self.aliases.values())

    @property
    def champion(self) -> Version | None:
        """Return the champion; raises StepError if the alias names a version that this project did not register."""
        number = self.aliases.get(CHAMPION)
        champion = self.version(number)
        if number is not None and champion is None:
            raise StepError(
                f"{self.name}@{CHAMPION} names version {number}, which this project did not register. "
                "Choose another name (-P registered_model=…), or delete the alias."
            )
        return champion

    @property
    def challenger(self) -> Version | None:
        """Return the challenger, if there is one."""
        return self.version(self.aliases.get(CHALLENGER))


def read(client: MlflowClient, name: str) -> Registry:
    """Return the registry as it is now; empty if the name is not registered yet.

    Raises:
        StepError: The name is that of a prompt.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if not is_missing(error):
            raise
        if prompts.is_prompt(client, name):
            raise StepError(
                f"registered_model must not be the name of a prompt, got '{name}': MLflow gives a name only once. "
                "Choose another one: -P registered_model=…"
            ) from None
        return Registry(name)
    entries = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda entry: int(entry.version))
    versions = tuple(_version(entry) for entry in entries if _is_ours(entry))
    return Registry(name, versions, {alias: str(number) for alias, number in aliases.items()})


def create(
    client: MlflowClient, registry: Registry, candidate: Candidate, tags: dict[str, str], description: str
) -> Version:
    """Register a candidate's model, with all of its tags in one write."""
    import mlflow

    origin = {FINGERPRINT: candidate.fingerprint, MODEL_ID: candidate.model_id, VARIANT: candidate.name}
    with suppress_output():
        retried(mlflow.register_model, f"models:/{candidate.model_id}", registry.name, tags=origin | tags)
    version = remove_duplicates(client, read(client, registry.name), candidate.model_id)
    if version is None:
        raise StepError(
            f"The new version of {registry.name} was deleted at once by another process. Run register again."
        )
    client.update_model_version(registry.name, version.number, description=description)
    return version


def describe(
    client: MlflowClient, registry: Registry, version: Version, tags: dict[str, str], description: str
) -> None:
    """Update the tags and the description of a version, writing only what differs."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            retried(client.set_model_version_tag, registry.name, version.number, key, value)
    if version.description != description:
        client.update_model_version(registry.name, version.number, description=description)


def set_alias(client: MlflowClient, registry: Registry, alias: str, version: Version | None) -> bool:
    """Let an alias name a version, or delete the alias for None; returns whether that was a change."""
    number = version.number if version else None
    if registry.aliases.get(alias) == number:
        return False
    if number is None:
        client.delete_registered_model_alias(registry.name, alias)
        return True
    retried(client.set_registered_model_alias, registry.name, alias, number)
    return True


def remove_duplicates(client: MlflowClient, registry: Registry, model_id: str) -> Version | None:
    """Return the version of a model, None if it has none, and delete every other version of it.

    MLflow's client repeats a request whose reply was lost, and without a lock two processes may register the same
    model. The later process finds the earlier version here, and continues with that one.
    """
    from mlflow.exceptions import MlflowException

    versions = registry.of_model(model_id)
    for duplicate in versions[1:]:
        try:
            client.delete_model_version(registry.name, duplicate.number)
        except MlflowException as error:
            if not is_missing(error):
                raise
    return versions[0] if versions else None


def is_missing(error: MlflowException) -> bool:
    """Return True if MLflow reports that there is no such thing."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def _is_ours(entry: ModelVersion) -> bool:
    """Return True if a version was made from the LoggedModel in its tag. Anyone can write a tag on any version."""
    return entry.tags.get(MODEL_ID) is not None and entry.source == f"models:/{entry.tags[MODEL_ID]}"


def _version(entry: ModelVersion) -> Version:
    return Version(str(entry.version), entry.tags[MODEL_ID], dict(entry.tags), entry.description or "")
