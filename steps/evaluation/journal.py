"""The journal of an evaluation: answers and judgements on disk, so that a killed evaluation continues.

Each journal is one SQLite file, `journals/<digest of the key>-<digest of the rows>.sqlite` in the user's cache
directory. It is removed once its content is in MLflow. A lock file keeps other processes out.

Every `add` is one transaction. SQLite rolls back a transaction that a killed process left unfinished
(https://www.sqlite.org/atomiccommit.html). The rollback journal is used, not the write-ahead log: it needs no shared
memory, so it also works in a cache on a network file system, and it leaves a single file between transactions.

Entries of the same key and other rows (a prompt set before one line was corrected) are reused, except errors: the
machine may have caused them.
"""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from steps.checkpoints.cache import cache_directory
from steps.digests import digest
from steps.errors import StepError

SCHEMA = (
    "CREATE TABLE journal (key TEXT NOT NULL)",
    "CREATE TABLE entries (name TEXT PRIMARY KEY, entry TEXT NOT NULL) WITHOUT ROWID",
)
# Errors of a file that is not a journal. All other errors (disk full, no permission) say nothing about the content.
NO_JOURNAL = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Seconds to wait for another process that reads this file's entries for its own rows.
BUSY_SECONDS = 60.0


class Journal:
    """Named entries, each anything that JSON can write, in one file.

    `entries` also holds those read from the files `others`, which stay as they are. A file that is damaged or has
    another key is replaced.
    """

    def __init__(self, path: Path, key: dict[str, Any], others: Iterable[Path] = ()) -> None:
        self._path = path
        stored = _read(path, key) if path.exists() else None
        if stored is None:
            _delete(path)
        self._connection = connect(path)
        if stored is None:
            with self._transaction() as connection:
                connection.execute("BEGIN")
                for statement in SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO journal VALUES (?)", [json.dumps(key)])
        self.entries: dict[str, Any] = _read_others(others, key) | (stored or {})

    def add(self, entries: dict[str, Any]) -> None:
        """Store entries, all or none. Once this returns they survive a kill and a power loss."""
        rows = ((name, json.dumps(entry)) for name, entry in entries.items())
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows)
        self.entries |= entries

    def drop(self, names: Iterable[str]) -> None:
        """Delete entries, also from the file."""
        names = list(names)
        with self._transaction() as connection:
            connection.executemany("DELETE FROM entries WHERE name = ?", [[name] for name in names])
        for name in names:
            del self.entries[name]

    def remove(self) -> None:
        """Close the journal and delete its file."""
        self.close()
        _delete(self._path)

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end, or roll back if the block raises; raise StepError if the file cannot be written."""
        try:
            with self._connection:
                yield self._connection
        except sqlite3.Error as error:
            raise StepError(
                f"The journal {self._path} cannot be written ({error}): free some disk space, or set PHI3_CACHE_DIR "
                "to another folder."
            ) from error


@contextlib.contextmanager
def opened(
    key: dict[str, Any], rows_sha256: str, on_wait: Callable[[], None], ignore_other_rows: bool = False
) -> Iterator[Journal]:
    """Open the journal of a key and a prompt set for this process alone.

    Args:
        key: what the entries depend on in addition to the rows.
        rows_sha256: digest of the prompt set.
        on_wait: called once if another process has the journal, before waiting for it.
        ignore_other_rows: do not reuse entries of other prompt sets.
    """
    from filelock import FileLock, Timeout

    path = _path(key, rows_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        others = set() if ignore_other_rows else set(path.parent.glob(f"{_stem(key)}-*.sqlite")) - {path}
        with contextlib.closing(Journal(path, key, others)) as journal:
            yield journal
    finally:
        lock.release()


def forget(key: dict[str, Any], rows_sha256: str) -> None:
    """Delete the journal that a killed process left. Leave it if another process has it open."""
    from filelock import FileLock, Timeout

    path = _path(key, rows_sha256)
    if path.is_file():
        with contextlib.suppress(Timeout), FileLock(f"{path}.lock", timeout=0):
            _delete(path)


def connect(path: Path) -> sqlite3.Connection:
    """Open or create a SQLite file whose commits survive a power loss.

    `synchronous=EXTRA` also syncs the directory after a commit. With FULL a power loss can bring back the rollback
    journal, and so undo the last commit (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    connection.execute("PRAGMA synchronous=EXTRA")
    return connection


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Return all entries of a file, or None if it is empty, damaged, of another key or no journal at all."""
    existing = f"{path.absolute().as_uri()}?mode=rw"  # writable, to roll back what a killed process left
    try:
        with contextlib.closing(sqlite3.connect(existing, uri=True, timeout=BUSY_SECONDS)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
                return None
            keys = [json.loads(text) for (text,) in connection.execute("SELECT key FROM journal")]
            if keys != [json.loads(json.dumps(key))]:
                return None
            return {name: json.loads(entry) for name, entry in connection.execute("SELECT name, entry FROM entries")}
    except ValueError:  # an entry that is not JSON
        return None
    except sqlite3.DatabaseError as error:
        # Text that is not UTF-8 raises an error without a code.
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in NO_JOURNAL:
            return None
        raise


def _read_others(paths: Iterable[Path], key: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of all files that can be read, without those that hold an error."""
    entries: dict[str, Any] = {}
    for path in sorted(paths):
        with contextlib.suppress(sqlite3.Error):  # another process may remove its file at any moment
            stored = _read(path, key) or {}
            entries |= {name: entry for name, entry in stored.items() if not _is_error(entry)}
    return entries


def _is_error(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("error") is not None


def _delete(path: Path) -> None:
    """Delete a file, and then its rollback journal: SQLite ignores one without its database, but not the reverse."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


def _path(key: dict[str, Any], rows_sha256: str) -> Path:
    return cache_directory() / "journals" / f"{_stem(key)}-{rows_sha256[:16]}.sqlite"


def _stem(key: dict[str, Any]) -> str:
    return digest(key)[:32]
