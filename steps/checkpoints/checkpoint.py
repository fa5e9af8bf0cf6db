"""A checkpoint: a folder of weights, tokenizer and chat template, from the source that the configuration names.

Code is never taken from a checkpoint: its Python files are ignored, and pickled weights are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from steps.checkpoints import known_digests
from steps.checkpoints.cache import cache_directory
from steps.checkpoints.configuration import refuse_adapter, support_faults
from steps.checkpoints.faults import checkpoint_faults
from steps.config.schema import FolderModel, HubModel, Model
from steps.digests import digest
from steps.errors import StepError, unknown
from steps.output import echo
from steps.wrappers.manifest import MANIFEST, FileEntry

# The files that are taken from a checkpoint, in Hugging Face or ONNX GenAI layout: neither code nor pickles.
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.onnx", "*.onnx.data", "*.onnx_data")
# `model.source` → a module with `fetch`. Each is imported only when it is used.
SOURCES = {
    "miniature": "steps.checkpoints.miniature",
    "smollm2": "steps.checkpoints.smollm2",
    "hub": "steps.checkpoints.hub",
    "folder": "steps.checkpoints.folder",
}


# The folders of which this process has said where the context ends.
_told: set[Path] = set()


@dataclass(frozen=True)
class Layout:
    """How the files of a checkpoint are arranged: the files that identify the layout, and its weights."""

    required: tuple[str, ...]
    weights: str


# In the order of detection: an export to ONNX keeps the config.json that it was made from.
LAYOUTS = {
    "genai": Layout(("genai_config.json", "tokenizer.json"), "*.onnx"),
    "huggingface": Layout(("config.json", "tokenizer.json"), "*.safetensors"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        directory: Folder of the files.
        layout: A key of LAYOUTS.
        revision: Commit of the hub repository; None for other sources.
        manifest: Size and sha256 of every file, by name.
    """

    directory: Path
    layout: str
    revision: str | None
    manifest: dict[str, FileEntry]

    @property
    def sha256(self) -> str:
        """Return one digest over the whole manifest."""
        return digest(self.manifest)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry["bytes"] for entry in self.manifest.values())

    def refuse_export(self, mode: str) -> None:
        """Raise StepError if the checkpoint has ONNX GenAI layout, which a mode does not take."""
        if self.layout == "genai":
            raise StepError(f"'{self.directory}' has ONNX GenAI layout, which is for mode=onnx, got mode={mode}.")


def resolve(model: Model) -> Checkpoint:
    """Return the checkpoint that the configuration names, training or downloading it first if necessary.

    Raises:
        StepError: The source is unknown, the checkpoint cannot be fetched, its files are damaged, or no mode takes it.
    """
    if model.source not in SOURCES:
        raise StepError(unknown("model.source", model.source, SOURCES))
    fetch: Callable[[Any], tuple[Path, str | None]] = import_module(SOURCES[model.source]).fetch
    directory, revision = fetch(model)
    checkpoint = _read(directory, revision)
    return _with_context(checkpoint, model)


def _read(directory: Path, revision: str | None) -> Checkpoint:
    """Return the checkpoint in a folder; raise StepError for what is wrong with it."""
    refuse_adapter(directory)
    layout = _detect_layout(directory)
    files = {path.name: path for path in checkpoint_files(directory)}
    if lost := sorted(name for name, path in files.items() if not path.exists()):
        raise StepError(
            *(f"{directory / name} is damaged: it is a link to a file that does not exist." for name in lost)
        )
    described = sorted(files.keys() - {MANIFEST})
    entries = known_digests.describe([files[name] for name in described], cache_directory())
    manifest = dict(zip(described, entries, strict=True))
    if faults := checkpoint_faults(directory, manifest) or [*support_faults(directory)]:
        raise StepError(*faults)
    return Checkpoint(directory, layout, revision, manifest)


def _with_context(checkpoint: Checkpoint, model: Model) -> Checkpoint:
    """Return a checkpoint with the context that was asked for, and say once where it ends if it could be longer."""
    from steps.checkpoints import long_context

    is_long = isinstance(model, HubModel | FolderModel) and model.long_context
    if checkpoint.layout != "huggingface":
        if is_long:
            raise StepError(
                f"model.long_context=true needs weights in Hugging Face layout, and '{checkpoint.directory}' is an "
                "export, which keeps its context: leave it out."
            )
        return checkpoint
    if is_long:
        return _read(long_context.with_long_context(checkpoint.directory, checkpoint.manifest), checkpoint.revision)
    if (limit := long_context.limit(checkpoint.directory)) and checkpoint.directory not in _told:
        _told.add(checkpoint.directory)
        echo(
            f"The context of {model.name} ends after {limit[0]:,} tokens, where its short factors do; "
            f"model.long_context=true takes all {limit[1]:,}, with the long factors for every prompt."
        )
    return checkpoint


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the files that are taken from a checkpoint, broken links included; a checkpoint has no folders inside."""
    return [path for pattern in FILES for path in directory.glob(pattern) if path.is_file() or not path.exists()]


def _detect_layout(directory: Path) -> str:
    """Return the layout of a folder; raise StepError with what is missing if it has none."""
    if not directory.is_dir():
        raise StepError(f"model.path must be a folder, got '{directory}', which does not exist.")
    for name, layout in LAYOUTS.items():
        if not all((directory / file).is_file() for file in layout.required):
            continue
        if not any(directory.glob(layout.weights)):
            raise StepError(
                f"'{directory}' holds no {layout.weights} weights; pickled weights (*.bin, *.pt) are never loaded."
            )
        return name
    choices = " or ".join(
        f"{' and '.join(layout.required)} ({name} layout)" for name, layout in reversed(LAYOUTS.items())
    )
    raise StepError(f"'{directory}' is not a checkpoint: it must hold {choices}.")
