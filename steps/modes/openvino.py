"""mode=openvino: our PythonModel on OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints import configuration
from steps.config.schema import BuildConfig, key
from steps.modes import openvino_export, openvino_graph
from steps.modes.exporting import Export
from steps.modes.wrapper import MODULES, PACKAGES, WRAPPERS, WrapperSettings, log_wrapper, wrapper_mode

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

EXPORT = Export(
    engine="OpenVINO",
    write=openvino_export.export_to_openvino,
    files=(openvino_export.GRAPH, openvino_export.WEIGHTS),
    packages=("openvino", "nncf", "torch", "transformers"),
    code=(
        *(Path(openvino_export.__file__), Path(openvino_graph.__file__), Path(configuration.__file__)),
        WRAPPERS / "engines" / "paged_attention.py",
    ),
)


@dataclass
class OpenVinoSettings(WrapperSettings):
    """Settings of the OpenVINO engine."""

    name: str = key("openvino", one_of=("openvino",))


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    return log_wrapper(config, folder, common, cast(OpenVinoSettings, config.mode).engine("OpenVINO"))


MODE = wrapper_mode(
    name="openvino",
    settings=OpenVinoSettings,
    precisions=tuple(openvino_export.KINDS),
    # Keys of 8 bits share a scale with those before them, so they depend on how a prompt was cut into passes.
    inexact_precisions=tuple(name for name, kind in openvino_export.KINDS.items() if kind),
    packages=(*PACKAGES, "psutil", "openvino"),
    modules=MODULES,
    stage=EXPORT.stage,
    log=_log,
)
