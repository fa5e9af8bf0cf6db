"""The user's cache: folders that are expensive to make, each made once and checked before each use.

Each folder has a manifest, so a damaged one is noticed and made again. One process makes a folder, under a lock file,
and the others wait.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from steps.checkpoints import known_digests
from steps.config.paths import user_directory
from steps.errors import StepError
from steps.output import echo
from steps.wrappers.manifest import MANIFEST, DamagedCheckpoint, check, read_manifest, write_manifest


def cache_directory() -> Path:
    """Return PHI3_CACHE_DIR if it is set, otherwise the platform's usual cache directory."""
    from platformdirs import user_cache_path

    return user_directory() / (os.environ.get("PHI3_CACHE_DIR") or user_cache_path("phi3-mlflow"))


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder `name`; if it is missing or damaged, make it first.

    Args:
        name: Name of the folder. It must contain a digest of everything that the content depends on.
        make: Fills the empty folder that it is called with. If it raises or is killed, the cache stays as it was.

    Raises:
        StepError: The cache cannot be written.
    """
    from filelock import FileLock

    target = cache_directory() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_dir() and not _is_whole(target):
                shutil.rmtree(target)
            if not target.is_dir():
                _make(target, make)
    except OSError as error:
        raise StepError(
            f"The cache {target.parent} cannot be used ({error.strerror or error}): "
            "set PHI3_CACHE_DIR to a writable folder."
        ) from error
    return target


def _is_whole(directory: Path) -> bool:
    """Return True if a cached folder still matches its manifest; otherwise print what is wrong."""
    try:
        if not _is_described(directory):
            check(directory)
    except DamagedCheckpoint as fault:
        echo(f"{directory} in the cache is damaged and is made again: {fault}.")
        return False
    return True


def _is_described(directory: Path) -> bool:
    """Return True if the files are those of the manifest."""
    entries = read_manifest(directory)
    files = {file.name: file for file in directory.iterdir() if file.name != MANIFEST}
    if entries.keys() != files.keys():
        return False
    return dict(zip(files, known_digests.describe(files.values(), cache_directory()), strict=True)) == entries


def _make(target: Path, make: Callable[[Path], None]) -> None:
    """Make a folder under a temporary name and rename it when it is complete."""
    # If an earlier process was killed, its unfinished folder is still here.
    for unfinished in target.parent.glob(f"{target.name}.making-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.making-", dir=target.parent))
    try:
        make(folder)
        write_manifest(folder)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
