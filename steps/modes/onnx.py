"""mode=onnx: our PythonModel on ONNX Runtime GenAI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.configuration import head_size, load_config
from steps.checkpoints.generation import refuse_lost_settings
from steps.checkpoints.prompting import check_prompting
from steps.checkpoints.staging import link_checkpoint, staged
from steps.checkpoints.vocabulary import check_vocabulary
from steps.config.schema import BuildConfig, Precision, QuantizedPrecision, key
from steps.digests import digest, digest_files
from steps.errors import StepError
from steps.modes.onnx_export import export_to_onnx
from steps.modes.onnx_graph import correct_graph, exported_precision, folder_faults
from steps.modes.wrapper import MODULES, PACKAGES, WrapperSettings, log_wrapper, wrapper_mode
from steps.wrappers.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

# Their versions decide what an export looks like, together with the checkpoint and the precision.
EXPORTERS = ("onnxruntime-genai", "onnx", "onnx-ir", "torch", "transformers")
EXPORT_CODE = [Path(__file__).with_name(name) for name in ("onnx_export.py", "onnx_graph.py", "onnx_quantization.py")]


@dataclass
class OnnxSettings(WrapperSettings):
    """Settings of the ONNX Runtime engine."""

    name: str = key("onnx", one_of=("onnx",))
    execution_provider: str = key(one_of=("cpu", "cuda", "dml"))

    @property
    def on_gpu(self) -> bool:
        """Return whether the mode is set to run on a GPU."""
        return self.execution_provider in ("cuda", "dml")

    @property
    def device_fault(self) -> str | None:
        """Return why ONNX Runtime GenAI cannot use the provider on this machine; None if it can."""
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
    # Before the export, which takes minutes.
    check_vocabulary(checkpoint.directory)
    refuse_lost_settings(checkpoint.directory)
    check_prompting(checkpoint.directory, config.prompting)
    with contextlib.ExitStack() as stack:
        if checkpoint.layout == "huggingface":
            source = _exported(checkpoint, config.precision)
            entries = read_manifest(source)
        else:
            # The corrected graph has other entries than the checkpoint's.
            source, entries = stack.enter_context(_corrected(checkpoint.directory, config)), {}
        yield stack.enter_context(staged(source, config.prompting, entries))


def _exported(checkpoint: Checkpoint, precision: Precision) -> Path:
    """Return the cached export of a checkpoint. Variants that differ in other keys share it."""
    options = _builder_options(precision)
    packages = [version(package) for package in EXPORTERS]
    made_of = [checkpoint.sha256, options, packages, digest_files(EXPORT_CODE), MANIFEST]

    if isinstance(precision, QuantizedPrecision) and precision.algo_config == "k_quant":
        _check_blocks(checkpoint.directory, precision.block_size)

    def export(target: Path) -> None:
        base = precision.base if isinstance(precision, QuantizedPrecision) else precision.name
        export_to_onnx(checkpoint.directory, target, base, options)

    return cached(f"onnx-{precision.name}-{digest(made_of)[:16]}", export)


def _check_blocks(directory: Path, block_size: int) -> None:
    """Raise StepError for a matrix that k_quant cannot pack: it puts two blocks' zero points into one byte."""
    config = load_config(directory)
    heads, head = config.num_attention_heads, head_size(config)
    odd = [rows for rows in (config.hidden_size, heads * head, config.intermediate_size) if rows % (2 * block_size)]
    if odd:
        fitting = [f"precision.block_size={size}" for size in (128, 64, 32, 16) if not odd[0] % (2 * size)]
        raise StepError(
            f"precision.algo_config=k_quant needs matrices with rows of an even number of blocks of {block_size} "
            f"weights, and '{directory}' has rows of {odd[0]}: give "
            f"{', or '.join([*fitting[:1], 'precision.algo_config=rtn'])}."
        )


@contextlib.contextmanager
def _corrected(directory: Path, config: BuildConfig) -> Iterator[Path]:
    """Yield a temporary copy of a folder in ONNX GenAI layout with its graph corrected; refuse what cannot run."""
    if faults := folder_faults(directory, config.mode.on_gpu):
        raise StepError(*faults)
    if (stored := exported_precision(directory)) != config.precision.name:
        # An export keeps its precision, and a variant must not carry another one's name.
        raise StepError(
            f"The weights of '{directory}' are {stored}, got precision={config.precision.name}. Give "
            f"precision={stored} if the mode has it, or the checkpoint in Hugging Face layout."
        )
    with TemporaryDirectory(prefix="phi3-") as temporary:
        copy = link_checkpoint(directory, Path(temporary) / "corrected")
        correct_graph(copy)
        yield copy


def _builder_options(precision: Precision) -> list[str]:
    """Return the model builder's options. It ignores an option that it does not know."""
    options = ["hf_remote=false", "hf_token=false"]
    if isinstance(precision, QuantizedPrecision):
        options += [f"block_size={precision.block_size}", f"accuracy_level={precision.accuracy_level}"]
        options += [f"algo_config={precision.algo_config}", f"prune_lm_head={precision.prune_lm_head}".lower()]
        if precision.matmul_mixed_precision != "none":
            options.append(f"matmul_mixed_precision={precision.matmul_mixed_precision}")
        if not precision.is_symmetric:
            options += ["is_symmetric=false"]
        is_8_bit_head = "last_matmul" in precision.matmul_mixed_precision and precision.algo_config != "k_quant"
        if not precision.is_symmetric or is_8_bit_head:
            # ONNX Runtime cannot load a head that is the embedding too, if it is asymmetric, or if it alone has 8 bits.
            options += ["shared_embeddings=false"]
    return options


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    settings = cast(OnnxSettings, config.mode)
    engine = settings.engine("onnxruntime", execution_provider=settings.execution_provider)
    return log_wrapper(config, folder, common, engine)


MODE = wrapper_mode(
    name="onnx",
    settings=OnnxSettings,
    precisions=("fp32", "int4", "int4_mixed", "int8"),
    inexact_precisions=(),
    packages=(*PACKAGES, "onnxruntime", "onnxruntime-genai"),
    modules=MODULES,
    stage=_stage,
    log=_log,
    takes_exports=True,
    has_blocks=True,
)
