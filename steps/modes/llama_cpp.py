"""mode=llama_cpp: our PythonModel on llama.cpp. Needs packages that this project does not install."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints import configuration
from steps.config.schema import BuildConfig, key
from steps.modes import gguf_export
from steps.modes.exporting import Export
from steps.modes.wrapper import MODULES, PACKAGES, WrapperSettings, log_wrapper, wrapper_mode

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

EXPORT = Export(
    engine="llama.cpp",
    write=gguf_export.export_to_gguf,
    files=(gguf_export.FILE,),
    packages=("llama-cpp-python", "gguf", "torch", "transformers"),
    code=(Path(gguf_export.__file__), Path(configuration.__file__)),
)


@dataclass
class LlamaCppSettings(WrapperSettings):
    """Settings of the llama.cpp engine."""

    name: str = key("llama_cpp", one_of=("llama_cpp",))
    # llama.cpp numbers 256 sequences, and one of them is for the beginnings that prompts share.
    max_batch_size: int = key(at_least=1, at_most=255)


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    return log_wrapper(config, folder, common, cast(LlamaCppSettings, config.mode).engine("llama.cpp"))


MODE = wrapper_mode(
    name="llama_cpp",
    settings=LlamaCppSettings,
    precisions=tuple(gguf_export.KINDS),
    inexact_precisions=tuple(gguf_export.KINDS),
    packages=(*PACKAGES, "psutil", "llama-cpp-python"),
    optional_packages=("llama-cpp-python", "gguf"),
    modules=MODULES,
    stage=EXPORT.stage,
    log=_log,
)
