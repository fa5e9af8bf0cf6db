"""A checkpoint's weights as bf16: its own files if they are bf16 already, otherwise a cached conversion.

The conversion goes tensor by tensor and file by file, so that it never holds more than one file of weights.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.staging import link_checkpoint
from steps.checkpoints.weights import COMPUTED, INDEX, StoredTensor, stored_tensors
from steps.digests import digest, digest_files
from steps.output import echo
from steps.wrappers.manifest import MANIFEST, FileEntry, read_manifest

BF16 = "BF16"


def as_bf16(checkpoint: Checkpoint) -> tuple[Path, dict[str, FileEntry]]:
    """Return the folder of a checkpoint in Hugging Face layout with bf16 weights, and the entries of its files."""
    stored = stored_tensors(checkpoint.directory)
    if all(tensor.dtype == BF16 for tensor in stored.values()):
        return checkpoint.directory, checkpoint.manifest
    made_of = [checkpoint.sha256, version("torch"), version("safetensors"), digest_files([Path(__file__)]), MANIFEST]

    def convert(target: Path) -> None:
        _convert(checkpoint.directory, stored, target)

    folder = cached(f"bf16-{digest(made_of)[:16]}", convert)
    return folder, read_manifest(folder)


def _convert(source: Path, stored: dict[str, StoredTensor], target: Path) -> None:
    """Fill an empty folder with the checkpoint, its weights as bf16."""
    target.rmdir()
    link_checkpoint(source, target)
    files = sorted({tensor.file.name for tensor in stored.values()})
    for weights in target.glob("*.safetensors"):
        weights.unlink()
    size = 0
    for place, name in enumerate(files, 1):
        if len(files) > 1:
            echo(f"Converting the weights to bf16: file {place} of {len(files)} …")
        size += _convert_file(source / name, target / name)
    if (target / INDEX).is_file():
        _edit_json(target / INDEX, {"metadata": {"total_size": size}})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    _edit_json(target / "config.json", {"torch_dtype" if "torch_dtype" in config else "dtype": "bfloat16"})


def _convert_file(source: Path, target: Path) -> int:
    """Convert one file of weights; return the bytes of its tensors."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    with safe_open(source, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
            if not name.endswith(COMPUTED):
                tensors[name] = opened.get_tensor(name).to(torch.bfloat16)
    save_file(tensors, target, metadata={"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _edit_json(file: Path, changes: dict[str, Any]) -> None:
    """Change keys of a JSON file, never through the link into the checkpoint."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.unlink()
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
