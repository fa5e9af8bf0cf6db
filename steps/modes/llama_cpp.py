"""mode=llama_cpp: our PythonModel on llama.cpp. Needs packages that this project does not install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import FILES, Checkpoint
from steps.checkpoints.generation import refuse_lost_settings
from steps.checkpoints.prompting import check_prompting
from steps.checkpoints.staging import link_checkpoint, staged
from steps.checkpoints.vocabulary import check_vocabulary
from steps.config.schema import BuildConfig, key
from steps.digests import digest, digest_files
from steps.modes import gguf_export
from steps.modes.mode import Mode
from steps.modes.wrapper import MODULES, PACKAGES, WEIGHTS_FOLDER, WrapperSettings, log_wrapper, score_tokens
from steps.output import activity
from steps.wrappers.manifest import MANIFEST, read_manifest

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

# Their versions decide what a file looks like, together with the checkpoint and the precision.
EXPORTERS = ("llama-cpp-python", "gguf", "torch", "transformers")


@dataclass
class LlamaCppSettings(WrapperSettings):
    """Settings of the llama.cpp engine."""

    name: str = key("llama_cpp", one_of=("llama_cpp",))
    # llama.cpp numbers 256 sequences, and one of them is for the beginnings that prompts share.
    max_batch_size: int = key(at_least=1, at_most=255)


@contextlib.contextmanager
def _stage(checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
    """Stage the cached GGUF file of a checkpoint with its tokenizer."""
    checkpoint.refuse_export(config.mode.name)
    # Before the export, which takes minutes.
    check_vocabulary(checkpoint.directory)
    refuse_lost_settings(checkpoint.directory)
    check_prompting(checkpoint.directory, config.prompting)
    packages = [version(package) for package in EXPORTERS]
    code = digest_files([Path(gguf_export.__file__)])
    made_of = [checkpoint.sha256, config.precision.name, packages, code, MANIFEST]

    def export(target: Path) -> None:
        target.rmdir()
        link_checkpoint(checkpoint.directory, target)
        for file in target.glob("*.safetensors*"):
            file.unlink()
        with activity("exporting for llama.cpp"):
            gguf_export.export_to_gguf(checkpoint.directory, target, config.precision.name)

    source = cached(f"gguf-{config.precision.name}-{digest(made_of)[:16]}", export)
    files = (*FILES, gguf_export.FILE)
    with staged(source, config.prompting, read_manifest(source), files) as folder:
        yield folder


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    settings = cast(LlamaCppSettings, config.mode)
    engine = {
        "name": "llama.cpp",
        "max_batch_size": settings.max_batch_size,
        "prefix_cache_mb": settings.prefix_cache_mb,
    }
    return log_wrapper(config, folder, common, engine)


MODE = Mode(
    name="llama_cpp",
    settings=LlamaCppSettings,
    precisions=tuple(gguf_export.KINDS),
    inexact_precisions=tuple(gguf_export.KINDS),
    packages=(*PACKAGES, "psutil", "llama-cpp-python"),
    optional_packages=("llama-cpp-python", "gguf"),
    modules=MODULES,
    weights_folder=WEIGHTS_FOLDER,
    shares_weights=True,
    core_checks=("all", "wrappers", "exact"),
    batches=True,
    streams=True,
    takes_params=True,
    takes_whole_prompts=True,
    seed=None,
    stage=_stage,
    log=_log,
    score_tokens=score_tokens,
)
