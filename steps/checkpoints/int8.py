"""A checkpoint with the weights of its linear layers as int8: a cached conversion, a quarter of fp32."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.configuration import load_config
from steps.checkpoints.staging import link_checkpoint
from steps.checkpoints.weights import COMPUTED, EMBEDDING, HEAD, INDEX, empty_model, stored_tensors
from steps.digests import digest, digest_files
from steps.wrappers.manifest import MANIFEST, FileEntry, read_manifest

# Bytes of one file: the weights of a shard are in memory together.
SHARD_BYTES = 2**31


def as_int8(checkpoint: Checkpoint) -> tuple[Path, dict[str, FileEntry]]:
    """Return the folder of a checkpoint in Hugging Face layout with int8 weights, and the entries of its files."""
    from steps.wrappers.engines import int8_linear, int8_model

    code = [Path(str(file)) for file in (__file__, int8_linear.__file__, int8_model.__file__)]
    made_of = [checkpoint.sha256, version("torch"), version("safetensors"), digest_files(code), MANIFEST]

    def convert(target: Path) -> None:
        target.rmdir()
        link_checkpoint(checkpoint.directory, target)
        for file in target.glob("*.safetensors*"):
            file.unlink()
        save_as_int8(checkpoint.directory, target)

    folder = cached(f"int8-{digest(made_of)[:16]}", convert)
    return folder, read_manifest(folder)


def save_as_int8(source: Path, target: Path) -> None:
    """Write the weights of a checkpoint in Hugging Face layout to another folder.

    The embedding stays as it is. A head that shares its weights with the embedding gets int8 weights of its own.
    """
    import torch
    from safetensors import safe_open

    from steps.wrappers.engines.int8_linear import quantize
    from steps.wrappers.engines.int8_model import SCALE, WEIGHT

    stored = stored_tensors(source)
    model = empty_model(source, load_config(source))
    linear = {f"{name}.weight" for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    writer = _ShardWriter(target)
    for name, tensor in stored.items():
        with safe_open(tensor.file, framework="pt") as opened:
            values = opened.get_tensor(tensor.name)
        if name in linear:
            writer.add(dict(zip(_names(name, WEIGHT, SCALE), quantize(values), strict=True)))
        elif not name.endswith(COMPUTED):
            writer.add({name: values})
        if name == EMBEDDING and HEAD not in stored:
            writer.add(dict(zip(_names(HEAD, WEIGHT, SCALE), quantize(values), strict=True)))
    writer.finish()


def _names(name: str, *suffixes: str) -> list[str]:
    layer = name.removesuffix(".weight")
    return [layer + suffix for suffix in suffixes]


class _ShardWriter:
    """Write tensors to safetensors files of at most SHARD_BYTES each, with an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Any] = {}
        self._files: dict[str, str] = {}
        self._shards = 0

    def add(self, tensors: dict[str, Any]) -> None:
        """Take tensors that stay in one file."""
        pending = sum(tensor.nbytes for tensor in [*self._tensors.values(), *tensors.values()])
        if self._tensors and pending > SHARD_BYTES:
            self._write()
        self._tensors |= tensors

    def finish(self) -> None:
        """Write what is left, and the index."""
        self._write()
        index = json.dumps({"metadata": {}, "weight_map": self._files}, indent=2)
        (self._folder / INDEX).write_text(index, encoding="utf-8")

    def _write(self) -> None:
        from safetensors.torch import save_file

        self._shards += 1
        name = f"model-{self._shards:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in self._tensors.items()}, self._folder / name)
        self._files |= dict.fromkeys(self._tensors, name)
        self._tensors = {}
