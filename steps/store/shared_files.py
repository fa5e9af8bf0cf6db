"""One copy of the weights: the large ones of a new model become links to the same files of another one.

Each model stays whole by itself. A hard link is a second name for the same bytes: deleting one model, or the cache,
leaves the others as they are, and the disk is free again when the last name is gone. This needs artifacts on this
machine. On a server, modes that can load them from another place share them there (shared_weights.py); a model of any
other mode has its own copy. They are uploaded straight from the staged folder.

A file is taken from this project's caches, or from any model of the store that has the same sha256, which is computed
again. A checkpoint in a folder of the user's is copied once, so that editing it there changes no model.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from steps.checkpoints.cache import cache_directory
from steps.digests import digest_file
from steps.modes import MODES, get_mode
from steps.modes.mode import Mode
from steps.store import shared_weights
from steps.store.integrity import local_folder
from steps.store.shared_weights import SharedFiles
from steps.store.variants import logged_models
from steps.wrappers.manifest import DamagedCheckpoint, FileEntry, read_manifest
from steps.wrappers.shared_weights import cached_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Smaller files are copied into each model.
LARGE = 3_000_000
# What models share. Others, such as a large tokenizer, are read before the weights are there.
WEIGHTS = (".safetensors", ".onnx", ".onnx.data", ".onnx_data", ".gguf", ".weights")


@contextlib.contextmanager
def set_aside_large_files(folder: Path) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Yield a folder of the same name without the large files of weights of a staged one, and those files by name."""
    weights = (file for file in folder.iterdir() if file.name.endswith(WEIGHTS))
    large = {file.name: file for file in weights if file.stat().st_size >= LARGE}
    if not large:
        yield folder, large
        return
    with TemporaryDirectory(prefix="phi3-") as temporary:
        rest = Path(temporary) / folder.name
        shutil.copytree(folder, rest, ignore=lambda *_: large)
        yield rest, large


def add_large_files(
    client: "MlflowClient", model_id: str, mode: Mode, files: dict[str, Path], entries: dict[str, FileEntry]
) -> SharedFiles | None:
    """Add the large files to the stored model, as links where the store is on this machine.

    Args:
        client: MLflow's client.
        model_id: Id of the model, which is logged without them.
        mode: What wraps it.
        files: The staged files by name.
        entries: Their entries in the manifest.

    Returns:
        The files that the model shares on a server, and where they are; None if it has all of them itself.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location, folder = client.get_logged_model(model_id).artifact_location, mode.weights_folder
    if (local := local_folder(location)) is not None:
        _add_to_folder(client, local / folder, files, entries)
        return None
    if not mode.shares_weights:
        for file in files.values():
            get_artifact_repository(location).log_artifact(str(file), folder)  # type: ignore[no-untyped-call]
        return None
    for name, file in files.items():
        if _is_cached(file):
            # So that this machine does not download what it has.
            _link_into_cache(file, cached_file(name, entries[name]))
    return shared_weights.share(client, model_id, folder, files, entries) if files else None


def _add_to_folder(client: "MlflowClient", folder: Path, files: dict[str, Path], entries: dict[str, FileEntry]) -> None:
    """Add files to a folder of a model on this machine."""
    others = None
    for name, file in files.items():
        target = folder / name
        if _is_cached(file) and _link(file, target):
            continue
        others = others if others is not None else list(_weights_folders(client))
        if not any(_link(donor, target) for donor in _same_files(others, name, entries[name])):
            shutil.copyfile(file, target)


def _is_cached(file: Path) -> bool:
    """Return True if a staged file is a link to a file of the project's cache or of the hub's client."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = file.stat()
    for candidate in (*cache_directory().glob("*/*"), *Path(HF_HUB_CACHE).glob("models--*/blobs/*")):
        with contextlib.suppress(OSError):  # another process may remove it
            if os.path.samestat(candidate.stat(), wanted):
                return True
    return False


def _weights_folders(client: "MlflowClient") -> Iterator[Path]:
    """Yield the folder of weights of every model of the store that is on this machine, the newest experiment first."""
    names = {get_mode(name).weights_folder for name in MODES}
    for experiment in client.search_experiments():
        for model in logged_models(client, experiment.experiment_id):
            local = local_folder(model.artifact_location)
            yield from (local / name for name in names if local and (local / name).is_dir())


def _same_files(folders: Iterable[Path], name: str, entry: FileEntry) -> Iterator[Path]:
    """Yield files with the name and the content that an entry describes."""
    for folder in folders:
        with contextlib.suppress(DamagedCheckpoint, OSError):
            file = folder / name
            if read_manifest(folder).get(name) == entry and _is_as_described(file, entry):
                yield file


def _is_as_described(file: Path, entry: FileEntry) -> bool:
    """Return True if a file has the content of its entry; a file that was changed is no source for another model."""
    status = file.stat()
    return status.st_size == entry["bytes"] and _sha256(file, status.st_ino, status.st_mtime_ns) == entry["sha256"]


@cache
def _sha256(file: Path, inode: int, modified: int) -> str:  # noqa: ARG001 (they are what the result depends on)
    return digest_file(file)


def _link_into_cache(file: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(file, target)


def _link(file: Path, target: Path) -> bool:
    """Make a hard link; return False if the file system does not allow it."""
    try:
        os.link(file, target)
    except OSError:
        return False
    return True
