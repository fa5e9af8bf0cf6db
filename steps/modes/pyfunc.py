"""mode=pyfunc: our PythonModel on torch ("the torch wrapper")."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.generation import refuse_lost_settings
from steps.config.schema import BuildConfig, key
from steps.modes.torch_checkpoint import TORCH_MODULES, stage_for_torch
from steps.modes.wrapper import PACKAGES, WrapperSettings, log_wrapper, wrapper_mode

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


@dataclass
class PyfuncSettings(WrapperSettings):
    """Settings of the torch engine."""

    name: str = key("pyfunc", one_of=("pyfunc",))
    device: str = key(one_of=("auto", "cpu", "cuda"))

    @property
    def on_gpu(self) -> bool:
        """Return whether the mode is set to run on a GPU; `auto` decides when the model is loaded."""
        return self.device == "cuda"

    @property
    def device_fault(self) -> str | None:
        """Return why torch cannot use the device on this machine; None if it can."""
        if not self.on_gpu:
            return None
        import torch

        if torch.cuda.is_available():
            return None
        return (
            "mode.device=cuda needs a GPU that torch can use, and this machine has none: choose mode.device=auto or "
            "cpu, or a machine with a GPU"
        )


def _stage(checkpoint: Checkpoint, config: BuildConfig) -> AbstractContextManager[Path]:
    refuse_lost_settings(checkpoint.directory)
    return stage_for_torch(checkpoint, config)


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    settings = cast(PyfuncSettings, config.mode)
    engine = settings.engine("torch", precision=config.precision.name, device=settings.device)
    return log_wrapper(config, folder, common, engine)


MODE = wrapper_mode(
    name="pyfunc",
    settings=PyfuncSettings,
    precisions=("fp32", "bf16", "int8"),
    inexact_precisions=("bf16",),
    packages=(*PACKAGES, "torch", "transformers", "safetensors", "psutil"),
    modules=TORCH_MODULES,
    stage=_stage,
    log=_log,
)
