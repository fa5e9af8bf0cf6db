"""The model registry: its versions and aliases, and what a version tells of itself.

A version carries tags: what it was made of, what it scored, and one `phi3.champion.<UTC time>` for each time that it
became champion (steps/promotion/history.py reads them).
"""

from dataclasses import dataclass, field
from typing import Any

from steps.errors import StepError
from steps.output import suppress_output
from steps.promotion.rank import Candidate
from steps.store.names import FINGERPRINT

CHAMPION = "champion"
CHALLENGER = "challenger"
# A registered version does not tell by itself which LoggedModel it was made of.
MODEL_ID = "phi3.model_id"
VARIANT = "phi3.variant"
SMOKE = "phi3.smoke"
REJECTED = "phi3.rejected"


@dataclass(frozen=True)
class Version:
    """A registered version of a variant's model."""

    number: str
    model_id: str
    tags: dict[str, str]
    description: str

    @property
    def rejected(self) -> str | None:
        """Why it is not to become champion."""
        return self.tags.get(REJECTED)


@dataclass(frozen=True)
class Registry:
    """What was registered under a name, oldest first, and which version each alias names."""

    name: str
    versions: tuple[Version, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)

    def numbered(self, number: str | None) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)

    def of_model(self, model_id: str) -> list[Version]:
        """The versions of a LoggedModel, the one to keep first: that an alias names, or that was made first."""
        found = [version for version in self.versions if version.model_id == model_id]
        return sorted(found, key=lambda version: version.number not in self.aliases.values())

    @property
    def champion(self) -> Version | None:
        number = self.aliases.get(CHAMPION)
        found = self.numbered(number)
        if number is not None and found is None:
            raise StepError(
                f"{self.name}@{CHAMPION} (version {number}) was not promoted by this project, so nothing is known "
                f"of it. Give another name (-P registered_model=…), or delete the alias."
            )
        return found

    @property
    def challenger(self) -> Version | None:
        return self.numbered(self.aliases.get(CHALLENGER))


def read(client: Any, name: str) -> Registry:
    """The registry as it is now; empty where the name is not registered yet."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return Registry(name)
        raise
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    versions = tuple(_version(entry) for entry in found if _is_ours(entry))
    return Registry(name, versions, {alias: str(number) for alias, number in aliases.items()})


def create(client: Any, registry: Registry, candidate: Candidate, tags: dict[str, str], description: str) -> Version:
    """Register a candidate's model, with all that is known of it in one write."""
    import mlflow

    made_of = {FINGERPRINT: candidate.fingerprint, MODEL_ID: candidate.model_id, VARIANT: candidate.name}
    with suppress_output():
        mlflow.register_model(f"models:/{candidate.model_id}", registry.name, tags=made_of | tags)
    version = only_one(client, read(client, registry.name), candidate.model_id)
    client.update_model_version(registry.name, version.number, description=description)
    return version


def describe(client: Any, registry: Registry, version: Version, tags: dict[str, str], description: str) -> None:
    """Bring the tags and the description of a version up to date, writing only what differs."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(registry.name, version.number, key, value)
    if version.description != description:
        client.update_model_version(registry.name, version.number, description=description)


def point(client: Any, registry: Registry, alias: str, version: Version | None) -> bool:
    """Have an alias name a version, or nothing; returns whether that was news."""
    number = version.number if version else None
    if registry.aliases.get(alias) == number:
        return False
    if number is None:
        client.delete_registered_model_alias(registry.name, alias)
    else:
        _set_alias(client, registry.name, alias, number)
    return True


def _set_alias(client: Any, name: str, alias: str, number: str) -> None:
    """Set an alias, once more where another process has made the same alias at the same moment."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, number)
    except MlflowException as error:
        # MLflow's store inserts an alias that it has just not found: the slower of two breaks the table's key.
        if "UNIQUE constraint" not in str(error) and "duplicate key" not in str(error):
            raise
        client.set_registered_model_alias(name, alias, number)


def only_one(client: Any, registry: Registry, model_id: str) -> Version | None:
    """The version of a model, None where it has none; a second one is deleted.

    MLflow's client repeats a request whose answer it did not get, and without a lock (a server) two processes may
    register the same model. Who comes second sees the first one here, and goes on with that.
    """
    from mlflow.exceptions import MlflowException

    kept, *doubles = registry.of_model(model_id) or [None]
    for double in doubles:
        try:
            client.delete_model_version(registry.name, double.number)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return kept


def _is_ours(entry: Any) -> bool:
    """Whether a version is of the LoggedModel that it says: a tag can be written on any version."""
    return entry.tags.get(MODEL_ID) is not None and entry.source == f"models:/{entry.tags[MODEL_ID]}"


def _version(entry: Any) -> Version:
    return Version(str(entry.version), entry.tags[MODEL_ID], dict(entry.tags), entry.description or "")
