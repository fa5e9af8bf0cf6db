"""What an evaluation has found out so far, on disk, so that a killed one goes on where it was.

One JSON line an entry in `journals/<sha256 of the key>.jsonl` of the user's cache directory, flushed to the disk
after every `add`; the first line is the key in words. A lock keeps a second process out. The file is removed when
all that it holds is in MLflow.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steps.models.manifest import digest
from steps.models.sources import cache_directory


class Journal:
    """The entries of a file by their names; half a line, or what follows a broken one, never counts."""

    def __init__(self, path: Path, key: dict[str, Any]):
        self._path = path
        self.entries: dict[str, Any] = {}
        whole = self._recover(key)
        self._file = path.open("r+b" if whole else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write([{"key": key}])
            _flush_directory(path.parent)

    def add(self, entries: dict[str, Any]) -> None:
        """Keep entries; when this returns they outlast the process and the machine."""
        self._write([{"name": name, "entry": entry} for name, entry in entries.items()])
        self.entries |= entries

    def remove(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _recover(self, key: dict[str, Any]) -> int:
        """Read the whole lines; returns how many bytes they are, 0 where the file is of no use."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        whole = 0
        for line in lines:
            content = _parse(line)
            if whole == 0 and content != {"key": json.loads(json.dumps(key))}:
                break
            if whole and content.keys() != {"name", "entry"}:
                break
            if whole:
                self.entries[content["name"]] = content["entry"]
            whole += len(line)
        return whole


@contextlib.contextmanager
def opened(key: dict[str, Any], waiting: Callable[[], None]) -> Iterator[Journal]:
    """The journal of a key, for this process alone; `waiting` is called if another process has it."""
    from filelock import FileLock, Timeout

    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        with contextlib.closing(Journal(path, key)) as journal:
            yield journal
    finally:
        lock.release()


def forget(key: dict[str, Any]) -> None:
    """Remove the journal that a killed process left of a key; one that another process has open stays."""
    from filelock import FileLock, Timeout

    path = _path(key)
    if path.is_file():
        with contextlib.suppress(Timeout), FileLock(f"{path}.lock", timeout=0):
            path.unlink(missing_ok=True)


def _path(key: dict[str, Any]) -> Path:
    return cache_directory() / "journals" / f"{digest(key)}.jsonl"


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a whole line; an empty one for anything else."""
    try:
        content = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _flush_directory(folder: Path) -> None:
    """Have the name of a new file outlast the machine too, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
