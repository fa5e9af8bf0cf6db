"""What one run of `register` works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from steps.config.schema import Promotion, RegisterConfig
from steps.evaluation.prompt_set import PromptSet
from steps.store import integrity
from steps.store.integrity import broken_model
from steps.store.variants import Variant

__all__ = ["IntegrityCache", "Job", "broken_model"]

if TYPE_CHECKING:
    from mlflow import MlflowClient


class IntegrityCache:
    """The integrity faults of models. The files of each model are read once."""

    def __init__(self) -> None:
        self._faults: dict[str, list[str]] = {}

    def faults(self, client: MlflowClient, variant: Variant) -> list[str]:
        """Return what is wrong with a variant's files; empty if they are what `build` logged."""
        if variant.model_id not in self._faults:
            self._faults[variant.model_id] = integrity.verify(client, variant)
        return self._faults[variant.model_id]

    def known_faults(self, variant: Variant) -> list[str]:
        """Return the same without reading any file; empty as well if the files were not read yet."""
        return self._faults.get(variant.model_id, [])


@dataclass(frozen=True)
class Job:
    """One run of `register`: the store, the configuration, the prompt set, and what it found out so far."""

    client: MlflowClient
    config: RegisterConfig
    rows: PromptSet
    # The LoggedModels that compete, in addition to the champion; None for all of the experiment.
    only: frozenset[str] | None = None
    integrity: IntegrityCache = field(default_factory=IntegrityCache)
    # By fingerprint, what this run has rejected, as a sentence without its full stop.
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the registered model."""
        return self.config.registered_model

    @property
    def policy(self) -> Promotion:
        """Return the promotion policy."""
        return self.config.promotion

    def competes(self, variant: Variant) -> bool:
        """Return True if a variant takes part."""
        return self.only is None or variant.model_id in self.only

    def faults(self, variant: Variant) -> list[str]:
        """Return what is wrong with a variant's files."""
        return self.integrity.faults(self.client, variant)
