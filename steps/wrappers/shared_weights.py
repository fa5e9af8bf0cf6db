"""Large files that models on a server share: such a model has a pointer in their place.

The pointer, `shared_weights.json`, is next to the manifest. It says where the shared files are and how they are called.
The manifest has their sha256, and no other content is taken from there. Each file is downloaded once per machine, into
the user's cache, and compared again whenever a model is loaded. A file that the model has itself comes first: a
registered model has all of them, and needs nothing else.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from .manifest import MANIFEST, POINTER, DamagedCheckpoint, FileEntry, check, file_damage, read_manifest


def write_pointer(folder: Path, location: str, names: Iterable[str]) -> Path:
    """Write the pointer to files of an artifact location into a folder; return it."""
    file = folder / POINTER
    file.write_text(json.dumps({"location": location, "files": sorted(names)}, indent=2), encoding="utf-8")
    return file


@contextlib.contextmanager
def whole_checkpoint(directory: str) -> Iterator[str]:
    """Yield a folder with every file of a checkpoint, all of them as the manifest describes them.

    It is the folder itself, or a temporary one with links into the cache.

    Raises:
        DamagedCheckpoint: A file is missing or was changed; the message names it and the places.
    """
    shared, location = _shared_entries(directory)
    check(directory, elsewhere=shared)
    if not shared:
        yield directory
        return
    fetched = [fetch(location, name, entry) for name, entry in shared.items()]
    with _folder_for_links() as folder:
        own = [Path(directory, name) for name in (*read_manifest(directory), MANIFEST) if name not in shared]
        for file in (*own, *fetched):
            link_or_copy(file, Path(folder, file.name))
        yield folder


def fetch(location: str, name: str, entry: FileEntry) -> Path:
    """Return a shared file in the user's cache, downloading it if it is not there as its entry describes it.

    Raises:
        DamagedCheckpoint: It is not in the shared place either, or the cache cannot be written.
    """
    from filelock import FileLock

    target = cached_file(name, entry)
    if not file_damage(name, entry, target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target.parent}.lock"):
            if file_damage(name, entry, target):
                _download(location, name, entry, target)
    except OSError as error:
        raise DamagedCheckpoint(
            f"{name} cannot be written to the cache {target.parent} ({error.strerror or error}): set PHI3_CACHE_DIR to "
            "a folder that can be written"
        ) from None
    return target


def cached_file(name: str, entry: FileEntry) -> Path:
    """Return where the cache has a shared file, whether it is there or not."""
    return _cache() / entry["sha256"] / name


def stored_bytes(location: str) -> dict[str, int]:
    """Return the size of each file in an artifact location by its name; raise whatever its store raises."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return {entry.path: entry.file_size or 0 for entry in get_artifact_repository(location).list_artifacts()}


def download(location: str, name: str, entry: FileEntry, folder: str) -> Path:
    """Download a shared file into a folder; raise DamagedCheckpoint if it is not as its entry describes it."""
    import mlflow

    try:
        # A server repeats a request for a file that is not there for minutes.
        if name not in stored_bytes(location):
            raise DamagedCheckpoint(f"{name} is missing from {location}")
        file = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{name}", dst_path=folder))
    except DamagedCheckpoint:
        raise
    except Exception as error:  # every kind of store fails in its own way
        raise DamagedCheckpoint(f"{name} cannot be read from {location} ({type(error).__name__})") from None
    if damage := file_damage(name, entry, file):
        raise DamagedCheckpoint(f"{damage}, in {location}")
    return file


def _download(location: str, name: str, entry: FileEntry, target: Path) -> None:
    # Of a process that was killed: only one downloads at a time.
    for unfinished in target.parent.glob("download-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    with TemporaryDirectory(prefix="download-", dir=target.parent) as temporary:
        try:
            file = download(location, name, entry, temporary)
        except DamagedCheckpoint as damage:
            raise DamagedCheckpoint(f"{damage}, and the cache does not have it ({target})") from None
        file.replace(target)


def _shared_entries(directory: str) -> tuple[dict[str, FileEntry], str]:
    """Return the entries of the files that a folder does not have itself but has a pointer to, and their location."""
    file = Path(directory, POINTER)
    if not file.is_file():
        return {}, ""
    try:
        pointer = json.loads(file.read_text(encoding="utf-8"))
        names, location = list(pointer["files"]), str(pointer["location"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{POINTER} cannot be read ({type(error).__name__})") from None
    entries = read_manifest(directory)
    # A copy that was cut short is the beginning of an upload that did not end.
    wanted = {name: entries[name] for name in names if name in entries and _is_plain(name, entries[name])}
    return {name: entry for name, entry in wanted.items() if not _is_whole(Path(directory, name), entry)}, location


def _is_plain(name: str, entry: FileEntry) -> bool:
    """Return True if an entry names no place outside the cache."""
    return Path(name).name == name and re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None


def _is_whole(file: Path, entry: FileEntry) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"]


def _cache() -> Path:
    from platformdirs import user_cache_path

    return Path(os.environ.get("PHI3_CACHE_DIR") or user_cache_path("phi3-mlflow")) / "shared-weights"


@contextlib.contextmanager
def _folder_for_links() -> Iterator[str]:
    """Yield a temporary folder on the disk of the cache, or elsewhere if the cache can only be read."""
    place = _cache() if os.access(_cache(), os.W_OK) else None
    with TemporaryDirectory(prefix="loading-", dir=place, ignore_cleanup_errors=True) as folder:
        yield folder


def link_or_copy(file: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if it is on another file system."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)
