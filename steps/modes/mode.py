"""The parts that every mode has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.config.schema import BuildConfig, ModeSettings
from steps.modes.requirements import is_installed, pin, pin_all

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from steps.checkpoints.checkpoint import Checkpoint
    from steps.wrappers.engines.sampling import FloatArray


# Prompts and their continuations, as token ids.
Pairs = list[tuple[list[int], list[int]]]
# Takes a loaded model, pairs, and whether to return the whole vocabulary at each place [tokens, vocabulary], or only
# the token that stands there [tokens].
ScoreTokens = Callable[[Any, Pairs, bool], "list[FloatArray]"]


@dataclass(frozen=True)
class Mode:
    """Everything that is true of one mode and of no other.

    Attributes:
        name: What users type.
        settings: The type of the keys under `mode.`.
        precisions: The precisions that it has.
        inexact_precisions: Those in which the other rows of a batch can change an answer.
        packages: What the logged model needs. Each is pinned to the version that it was built with, and so is what they
            depend on.
        optional_packages: What the mode needs here that this project does not install.
        modules: What a process imports before the mode's speed is measured.
        weights_folder: Where the checkpoint is inside the logged model.
        core_checks: Which core checks of contract_suite.yaml a version must pass before it becomes champion.
        batches: Whether one call answers several rows together.
        streams: Whether the model has `predict_stream`.
        takes_params: Whether a call takes parameters.
        takes_whole_prompts: Whether a prompt may hold the whole chat format.
        seed: Seed the process before a call; None if a request carries its own seed.
        stage: Make a temporary folder with the checkpoint as the mode needs it.
        log: Log the staged folder to the active run. Takes the keyword arguments of MLflow that all modes share.
        takes_exports: Whether it takes checkpoints that are in ONNX GenAI layout already.
        has_blocks: Whether it quantises weights in blocks, and so reads all keys of such a precision.
        shares_weights: Whether its models can load weights that are not among their own files.
        score_tokens: Return the log-probabilities of given texts with a loaded model; None if the mode cannot.
    """

    name: str
    settings: type[ModeSettings]
    precisions: tuple[str, ...]
    inexact_precisions: tuple[str, ...]
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    weights_folder: str
    core_checks: tuple[str, ...]
    batches: bool
    streams: bool
    takes_params: bool
    takes_whole_prompts: bool
    seed: Callable[[int], None] | None
    stage: Callable[[Checkpoint, BuildConfig], AbstractContextManager[Path]]
    log: Callable[[BuildConfig, Path, dict[str, Any]], ModelInfo]
    optional_packages: tuple[str, ...] = ()
    takes_exports: bool = False
    has_blocks: bool = False
    shares_weights: bool = False
    score_tokens: ScoreTokens | None = None

    @property
    def lacking(self) -> list[str]:
        """Return the optional packages that are not installed."""
        return [package for package in self.optional_packages if not is_installed(package)]

    @property
    def requirements(self) -> list[str]:
        """Return the pins of the packages themselves. A variant's fingerprint has them."""
        return [pin(package) for package in self.packages]

    @property
    def whole_requirements(self) -> list[str]:
        """Return the pins of the packages and of all that they depend on, for the logged model."""
        return pin_all(self.packages)
