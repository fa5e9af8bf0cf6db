"""Say in a line that a disk is full, and which."""

import contextlib
import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from steps.errors import StepError

# Some libraries tell the number of the system's error only in words.
FULL = re.compile(rf"(\[Errno |os error )({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b")


@contextlib.contextmanager
def needed(size: int, place: Path | None = None) -> Iterator[None]:
    """Raise StepError if what is done within fills a disk: it writes about `size` bytes to `place` or to TMPDIR."""
    free = {folder: _free(folder) for folder in (Path(tempfile.gettempdir()), place) if folder}
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        folder = min(free, key=free.get)
        raise StepError(
            f"{folder} is full: the model needs {size / 1e6:.1f} MB, {free[folder] / 1e6:.1f} MB were free. "
            "Make room, or take another place for artifacts (or TMPDIR for what is temporary). Nothing was left over."
        ) from error


def is_full(error: Exception) -> bool:
    """Whether an error says that there is no room on a disk."""
    return bool(FULL.search(str(error)))


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(there).free
