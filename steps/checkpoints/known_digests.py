"""Remember the sha256 of large files. Reading the 7.6 GB of Phi-3-mini takes seconds, and every step needs its digest.

A digest is stored under the file's device, inode, size and modification time. A file that was written again has another
time, and is read again. When a model is loaded or registered, its files are always read.
"""

import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import NamedTemporaryFile

from steps.digests import digest
from steps.wrappers.manifest import FileEntry, describe_file

# Smaller files are read each time.
LARGE = 50_000_000
# A file is remembered once it is this many seconds old. A younger one may change again and keep its modification time.
SETTLED = 5.0


def describe(files: Iterable[Path], cache: Path) -> list[FileEntry]:
    """Return the entries of files, several at once.

    Args:
        files: What to describe.
        cache: The folder of the cache; it need not exist.
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda file: _describe(file, cache / "digests"), files))


def _describe(file: Path, known: Path) -> FileEntry:
    status = file.stat()
    if status.st_size < LARGE or time.time() - status.st_mtime < SETTLED:
        return describe_file(file)
    name = digest([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    with contextlib.suppress(OSError):
        if len(sha256 := (known / name).read_text(encoding="ascii")) == len(name):
            return {"bytes": status.st_size, "sha256": sha256}
    entry = describe_file(file)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        _write(known / name, entry["sha256"])
    return entry


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="ascii") as unfinished:
        unfinished.write(text)
    Path(unfinished.name).replace(file)
