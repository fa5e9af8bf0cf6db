"""Say in a line that a disk is full, and which."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from steps.errors import StepError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def needed(size: int, place: Path | None) -> Iterator[None]:
    """Raise StepError if what is done within fills a disk: it writes `size` bytes to `place` (None: a server's)."""
    free = {folder: _free(folder) for folder in (Path(tempfile.gettempdir()), place) if folder}
    try:
        yield
    except OSError as error:
        if not _is_full(error):
            raise
        folder = min(free, key=_free)
        raise StepError(
            f"{folder} is full: the model needs {size / 1e6:.1f} MB, {free[folder] / 1e6:.1f} MB were free. "
            "Make room, or take another place for artifacts. Nothing was left over."
        ) from error


def _is_full(error: OSError) -> bool:
    """Also of shutil's error, which tells only in words what went wrong with each of many files."""
    return error.errno in FULL or any(f"[Errno {number}]" in str(error) for number in FULL)


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(there).free
