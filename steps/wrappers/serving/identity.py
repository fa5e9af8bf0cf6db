"""What a served model is: the name and version that MLflow fetched, the alias it was asked for, its fingerprint."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.utils.yaml_utils import read_yaml

# MLflow writes this file next to a model that it fetches from the registry.
REGISTRY_FILE = "registered_model_meta"
FINGERPRINT = "phi3.fingerprint"
# MLflow does not hand on the alias that a server was started with; the step `serve` does.
ALIAS = "PHI3_SERVED_ALIAS"


@dataclass(frozen=True)
class Identity:
    """The names of a served model. A model that was not fetched from the registry has no version."""

    name: str
    version: str | None
    alias: str | None
    fingerprint: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def shown(self) -> str:
        """Return the name for replies: NAME/VERSION, because an alias can move between two of them."""
        return f"{self.name}/{self.version}" if self.version else self.name

    @property
    def ids(self) -> tuple[str, ...]:
        """Return every name that a client may use for the model."""
        alias = (f"{self.name}@{self.alias}",) if self.alias else ()
        return (self.name, *alias, *((self.shown,) if self.version else ()))

    def as_object(self) -> dict[str, Any]:
        """Return the model as an object of OpenAI's list of models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "phi3-mlflow",
            "version": self.version,
            "alias": self.alias,
            "fingerprint": self.fingerprint,
        }


def read_identity(model_folder: Path, name: str) -> Identity:
    """Return the identity of the model in a folder; `name` is for one that was not fetched from the registry."""
    is_registered = (model_folder / REGISTRY_FILE).is_file()
    entry: dict[str, Any] = {}
    if is_registered:
        entry = read_yaml(str(model_folder), REGISTRY_FILE)  # type: ignore[no-untyped-call]
    version = entry.get("model_version")
    fingerprint = (Model.load(model_folder).metadata or {}).get(FINGERPRINT)
    return Identity(
        name=str(entry.get("model_name") or name),
        version=None if version is None else str(version),
        alias=os.environ.get(ALIAS) or None,
        fingerprint=fingerprint,
    )
