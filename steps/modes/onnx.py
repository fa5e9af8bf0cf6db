"""mode=onnx: our PythonModel on ONNX Runtime GenAI."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.staging import link_checkpoint, staged
from steps.config.schema import BuildConfig, Int4Precision, Precision, key
from steps.digests import digest
from steps.errors import StepError
from steps.modes.mode import Mode
from steps.modes.wrapper import MODULES, PACKAGES, WEIGHTS_FOLDER, WrapperSettings, log_wrapper
from steps.output import suppress_output
from steps.wrappers.manifest import MANIFEST

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

# Their versions decide what an export looks like, together with the checkpoint and the precision.
EXPORTERS = ("onnxruntime-genai", "onnx", "onnx-ir", "torch", "transformers")


@dataclass
class OnnxSettings(WrapperSettings):
    """Settings of the ONNX Runtime engine."""

    name: str = key("onnx", one_of=("onnx",))
    execution_provider: str = key(one_of=("cpu", "cuda", "dml"))

    @property
    def on_gpu(self) -> bool:
        """Whether the mode is set to run on a GPU."""
        return self.execution_provider in ("cuda", "dml")

    @property
    def device_fault(self) -> str | None:
        """Why ONNX Runtime GenAI cannot use the provider on this machine; None if it can."""
        if not self.on_gpu:
            return None
        import onnxruntime_genai

        provider = self.execution_provider
        if getattr(onnxruntime_genai, f"is_{provider}_available")():
            return None
        return (
            f"mode.execution_provider={provider} is not offered by ONNX Runtime GenAI on this machine: choose "
            f"mode.execution_provider=cpu, or a machine with a GPU and with the package onnxruntime-genai-{provider}"
        )


@contextlib.contextmanager
def _stage(checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
    """Stage a checkpoint in ONNX GenAI layout, exporting it first if it has Hugging Face layout."""
    source = checkpoint.directory
    if checkpoint.layout == "huggingface":
        source = _exported(checkpoint, config.precision)
    elif (stored := exported_precision(source)) != config.precision.name:
        # An export keeps its precision, and a variant must not carry another one's name.
        raise StepError(
            f"The weights of '{source}' are {stored}, got precision={config.precision.name}. Give "
            f"precision={stored} if the mode has it, or the checkpoint in Hugging Face layout."
        )
    with staged(source, config.prompting) as folder:
        yield folder


def _exported(checkpoint: Checkpoint, precision: Precision) -> Path:
    """Return the cached export of a checkpoint. Variants that differ in other keys share it."""
    options = _builder_options(precision)
    made_of = [checkpoint.sha256, options, [version(package) for package in EXPORTERS], MANIFEST]

    def export(target: Path) -> None:
        with TemporaryDirectory(prefix="phi3-") as temporary:
            source = link_checkpoint(checkpoint.directory, Path(temporary) / "checkpoint")
            export_to_onnx(source, target, precision.name, options)

    return cached(f"onnx-{precision.name}-{digest(made_of)[:16]}", export)


def export_to_onnx(source: Path, target: Path, precision: str, options: list[str]) -> None:
    """Export a checkpoint with ONNX Runtime GenAI's model builder."""
    with suppress_output(), TemporaryDirectory(prefix="phi3-") as cache:
        from onnxruntime_genai.models import builder

        arguments = ("", str(source), str(target), precision, "cpu", cache)
        builder.create_model(*arguments, **builder.parse_extra_options(*arguments, options))


def _builder_options(precision: Precision) -> list[str]:
    """Return the model builder's options. It ignores an option that it does not know."""
    options = ["hf_remote=false", "hf_token=false"]
    if isinstance(precision, Int4Precision):
        options += [f"block_size={precision.block_size}", f"accuracy_level={precision.accuracy_level}"]
    return options


def exported_precision(directory: Path) -> str:
    """Return the precision of an exported checkpoint by its graph: int4, int8, fp32, fp16, … Reads no weights."""
    import onnx

    config = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
    decoder = directory / config.get("model", {}).get("decoder", {}).get("filename", "model.onnx")
    graph = onnx.load(decoder, load_external_data=False).graph
    quantized = [node for node in graph.node if node.op_type == "MatMulNBits"]
    bits = {attribute.i for node in quantized for attribute in node.attribute if attribute.name == "bits"}
    if bits:
        return f"int{min(bits)}"
    sizes: Counter[int] = Counter()
    for tensor in graph.initializer:
        sizes[tensor.data_type] += math.prod(tensor.dims)
    kind: str = onnx.TensorProto.DataType.Name(sizes.most_common(1)[0][0]) if sizes else "no numbers"
    return {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}.get(kind, kind.lower())


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    settings = cast(OnnxSettings, config.mode)
    engine = {"max_batch_size": settings.max_batch_size, "execution_provider": settings.execution_provider}
    return log_wrapper(config, folder, common, engine)


MODE = Mode(
    name="onnx",
    settings=OnnxSettings,
    precisions=("fp32", "int4"),
    inexact_precisions=(),
    packages=(*PACKAGES, "onnxruntime", "onnxruntime-genai"),
    modules=MODULES,
    weights_folder=WEIGHTS_FOLDER,
    core_checks=("all", "wrappers", "exact"),
    batches=True,
    streams=True,
    takes_params=True,
    takes_whole_prompts=True,
    seed=None,
    stage=_stage,
    log=_log,
)
