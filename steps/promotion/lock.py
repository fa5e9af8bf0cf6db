"""A lock that allows one register at a time for each registered name.

It is a file next to a SQLite registry, or an advisory lock in a PostgreSQL registry. A server over HTTP has no place
for either: there, `register` reads again after it has written, and repairs (promote.py).
"""

import contextlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from steps.errors import StepError
from steps.output import echo
from steps.redaction import without_secrets
from steps.store import database_lock
from steps.store.address import registry_file


@contextlib.contextmanager
def held(registered_model: str, seconds: float) -> Iterator[bool]:
    """Hold the lock during the block and yield True; yield False if the registry has none.

    The system releases the lock when the process ends, however it ends.

    Raises:
        StepError: Another process has held the lock for `seconds`.
    """
    import mlflow
    from filelock import FileLock, Timeout

    if database_lock.is_postgresql(mlflow.get_registry_uri()):
        with _held_in_database(mlflow.get_registry_uri(), registered_model, seconds):
            yield True
        return
    path = file(registered_model)
    if path is None:
        yield False
        return
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _echo_wait(registered_model)
            lock.acquire(timeout=seconds)
    except Timeout:
        raise StepError(
            f"Another register of {registered_model} has held {path} for more than promotion.lock_seconds={seconds:g}. "
            "Wait for it to end, or end it: the lock is released with its process."
        ) from None
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def _held_in_database(uri: str, registered_model: str, seconds: float) -> Iterator[None]:
    try:
        with database_lock.held(uri, f"register {registered_model}", seconds, lambda: _echo_wait(registered_model)):
            yield
    except database_lock.HeldByAnotherError:
        raise StepError(
            f"Another register of {registered_model} has held the lock in {without_secrets(uri)} for more than "
            f"promotion.lock_seconds={seconds:g}. Wait for it to end, or end it: the lock is released with its process."
        ) from None


def _echo_wait(registered_model: str) -> None:
    echo(f"Waiting for another register of {registered_model} …")


def file(registered_model: str) -> Path | None:
    """Return the lock file of a registered name; None if the registry is not a file."""
    registry = registry_file()
    if registry is None:
        return None
    return registry.with_name(f"{registry.name}-{sha256(registered_model.encode()).hexdigest()[:12]}.lock")
