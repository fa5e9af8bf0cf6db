"""Report a full disk in one line, with the folder and the space that was needed."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from steps.errors import StepError

# Some libraries give the system's error number only in their text.
DISK_FULL = re.compile(rf"(\[Errno |os error )({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b")


@contextlib.contextmanager
def explain_full_disk(size: int, artifacts: Path | None = None) -> Iterator[None]:
    """Raise StepError if the block fails because a disk is full.

    Args:
        size: Bytes that the block is expected to write.
        artifacts: Local folder that the block writes to in addition to TMPDIR, if there is one.
    """
    folders = [Path(tempfile.gettempdir()), *([artifacts] if artifacts else [])]
    free = {folder: free_bytes(folder) for folder in folders}
    try:
        yield
    except Exception as error:
        if not DISK_FULL.search(str(error)):
            raise
        folder = min(folders, key=free.__getitem__)
        raise StepError(
            f"{folder} is full: the model needs {size / 1e6:.1f} MB, {free[folder] / 1e6:.1f} MB were free. Free some "
            "space, or choose another artifact location (for temporary files, TMPDIR). Nothing was left behind."
        ) from error


@contextlib.contextmanager
def explain_full_temporary_folder() -> Iterator[None]:
    """Raise StepError if the block, which writes to TMPDIR only, fails because the disk is full."""
    try:
        yield
    except Exception as error:
        if not DISK_FULL.search(str(error)) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise StepError(
            f"{tempfile.gettempdir()} is full. Free some space, choose a smaller size, or name another folder in "
            "TMPDIR. Nothing was left behind there."
        ) from error


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be on once it exists."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(existing).free
