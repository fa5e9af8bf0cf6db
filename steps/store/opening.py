"""Open the store, also if it is not there yet and several processes open it at the same moment.

MLflow makes a SQLite file in about 50 steps and does not expect company: of three processes that start together, two
fail. Here a file lock lets one process make it while the others wait. `mlflow run` itself opens the store before any
step of this project starts, and knows no lock: if a store that is not complete has just changed, another process is
making it, and this one waits until it has been quiet for QUIET seconds.
"""

import contextlib
import os
import sqlite3
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import StepError
from steps.store import address, database_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

# The longest pause between two changes of a file that MLflow is making was 0.6 s on two busy cores.
QUIET = 4.0
LONGEST_WAIT = 60.0
# Making the tables of a database takes a few seconds, on a busy machine a minute.
DATABASE_WAIT = 300.0
# How often to try while other processes change the file.
ATTEMPTS = 5
# How often MLflow tries to reach a database: 3 seconds in all. Its own setting is 10 times, 100 seconds.
CONNECTIONS = 5
# Seconds to wait while another process changes a SQLite file. MLflow waits for 20, once too short in a test.
SQLITE_WAIT = 120


def open_store() -> "MlflowClient":
    """Return MLflow's client; raises StepError if the store cannot be made, and whatever MLflow raises."""
    import mlflow
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = CONNECTIONS
    _wait_longer_for_locks()
    uri = mlflow.get_tracking_uri()
    if database_lock.is_postgresql(uri):
        # One process makes the tables while the others wait.
        with database_lock.held(uri, "open the store", DATABASE_WAIT):
            if not _has_all_tables(uri):
                return mlflow.MlflowClient()
        return mlflow.MlflowClient()
    file = address.sqlite_file(uri)
    if file is None or _is_complete(file):
        # Even with all of its tables, it may lack the last steps.
        return _open_when_quiet(file, ATTEMPTS)
    if not is_writable(file):
        raise StepError(
            f"The store {file} cannot be made: {_existing(file)} cannot be written. Set MLFLOW_TRACKING_URI to a place "
            "that can be written (sqlite:////…/mlflow.db) or to a server."
        )
    with _lock(file):
        if not _is_complete(file):
            _wait_until_quiet(file)
            return _open_when_quiet(file, ATTEMPTS)
    return _open_when_quiet(file, ATTEMPTS)


def _wait_longer_for_locks() -> None:
    """Have every connection of MLflow to a SQLite file wait SQLITE_WAIT seconds for its lock."""
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "connect", _wait_for_lock):
        event.listen(Engine, "connect", _wait_for_lock)
        event.listen(Engine, "before_cursor_execute", _with_longer_wait, retval=True)


def _wait_for_lock(connection: object, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"PRAGMA busy_timeout = {SQLITE_WAIT * 1000}")


def _with_longer_wait(
    _connection: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool
) -> tuple[str, Any]:
    """Return a statement and its parameters, with our time if it is the one by which MLflow sets its own."""
    if statement.startswith("PRAGMA busy_timeout ="):
        statement = f"PRAGMA busy_timeout = {SQLITE_WAIT * 1000}"
    return statement, parameters


def is_writable(path: Path) -> bool:
    """Return True if a file or folder can be written, or made if it is not there; SQLite needs the folder as well."""
    place = _existing(path)
    return os.access(place, os.W_OK) and (place.is_dir() or os.access(place.parent, os.W_OK))


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.access(place, os.F_OK))


def _open_when_quiet(file: Path | None, attempts: int) -> "MlflowClient":
    """Open the store; if that fails while another process changes it, wait for that process and try again."""
    import mlflow

    try:
        return mlflow.MlflowClient()
    except Exception:  # anything of MLflow, SQLAlchemy or Alembic
        if file is None or attempts == 1 or not _seconds_to_wait(file):
            raise
    _wait_until_quiet(file)
    return _open_when_quiet(file, attempts - 1)


def _is_complete(file: Path) -> bool:
    """Return True if a SQLite file has all tables of this MLflow, so that opening it makes none.

    Raises:
        StepError: It is not a SQLite file.
    """
    from mlflow.store.db.base_sql_model import Base

    if not os.access(file, os.F_OK):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", SQLITE_WAIT, uri=True)) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        # Another process is making it, or was killed before it had made it and has left a journal to roll back.
        if "locked" in str(error) or "readonly" in str(error):
            return False
        raise StepError(
            f"The store {file} cannot be opened: {error}. Set MLFLOW_TRACKING_URI to a store that can be opened, or "
            "unset it to use ./mlflow.db."
        ) from None
    return tables >= set(Base.metadata.tables)


def _has_all_tables(uri: str) -> bool:
    """Return True if a database has all tables of this MLflow."""
    from mlflow.store.db.base_sql_model import Base
    from sqlalchemy import NullPool, create_engine, inspect

    return set(inspect(create_engine(uri, poolclass=NullPool)).get_table_names()) >= set(Base.metadata.tables)


def _wait_until_quiet(file: Path) -> None:
    deadline = time.monotonic() + LONGEST_WAIT
    while (seconds := _seconds_to_wait(file)) and time.monotonic() < deadline:
        time.sleep(seconds)


def _seconds_to_wait(file: Path) -> float:
    """Return how long a file has to stay as it is to count as quiet; 0 if it is quiet or not there."""
    try:
        age = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0
    # A time in the future is no reason to wait.
    return max(QUIET - age, 0) if age >= 0 else 0


def _lock(file: Path) -> AbstractContextManager[object]:
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}-first.lock")
