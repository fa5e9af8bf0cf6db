"""What an evaluation has found out so far, on disk, so that a killed one goes on where it was.

One JSON line an entry in `journals/<digest of the key>-<digest of the rows>.jsonl` of the user's cache directory,
flushed to the disk after every `add`; the first line is the key in words. A lock keeps a second process out. The file
is removed when all that it holds is in MLflow. What a killed process found out under the same key for other rows, as
they were before one of them was mended, is known too, but for errors: these may have been the machine's.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from steps.checkpoints.cache import cache_directory
from steps.digests import digest


class Journal:
    """The entries of a file by their names, and of `others` of the same key, which are only read.

    Half a line, or what follows a broken one, never counts.
    """

    def __init__(self, path: Path, key: dict[str, Any], others: Iterable[Path] = ()):
        self._path = path
        self.entries: dict[str, Any] = {}
        for other in sorted(others):
            self.entries |= {name: entry for name, entry in _recover(other, key)[0].items() if not _is_error(entry)}
        own, whole = _recover(path, key)
        self.entries |= own
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

    def drop(self, names: Iterable[str]) -> None:
        """Forget entries, for good."""
        names = list(names)
        self._write([{"name": name, "entry": None} for name in names])
        for name in names:
            del self.entries[name]

    def remove(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())


@contextlib.contextmanager
def opened(key: dict[str, Any], rows: str, waiting: Callable[[], None], anew: bool = False) -> Iterator[Journal]:
    """The journal of a key and rows (a digest), for this process alone; `waiting` is called if another one has it.

    `anew` leaves out what is known of other rows.
    """
    from filelock import FileLock, Timeout

    path = _path(key, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        others = set() if anew else set(path.parent.glob(f"{_stem(key)}-*.jsonl")) - {path}
        with contextlib.closing(Journal(path, key, others)) as journal:
            yield journal
    finally:
        lock.release()


def forget(key: dict[str, Any], rows: str) -> None:
    """Remove the journal that a killed process left; one that another process has open stays."""
    from filelock import FileLock, Timeout

    path = _path(key, rows)
    if path.is_file():
        with contextlib.suppress(Timeout), FileLock(f"{path}.lock", timeout=0):
            path.unlink(missing_ok=True)


def _path(key: dict[str, Any], rows: str) -> Path:
    return cache_directory() / "journals" / f"{_stem(key)}-{rows[:16]}.jsonl"


def _stem(key: dict[str, Any]) -> str:
    return digest(key)[:32]


def _recover(path: Path, key: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The entries of the whole lines, and how many bytes these are: 0 where the file is of no use."""
    entries: dict[str, Any] = {}
    whole = 0
    for line in _lines(path):
        content = _parse(line)
        if whole == 0 and content != {"key": json.loads(json.dumps(key))}:
            break
        if whole and content.keys() != {"name", "entry"}:
            break
        if whole:
            entries[content["name"]] = content["entry"]
        whole += len(line)
    return {name: entry for name, entry in entries.items() if entry is not None}, whole


def _lines(path: Path) -> list[bytes]:
    """The lines of a file; none of one that another process has just removed."""
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _is_error(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("error") is not None


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
