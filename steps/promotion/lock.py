"""A lock that allows one register at a time for each registered name: a file next to a SQLite registry.

A server has no place for such a file. There, `register` reads again after it has written, and repairs (promote.py).
"""

import contextlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from steps.errors import StepError
from steps.output import echo
from steps.store.address import registry_file


@contextlib.contextmanager
def held(registered_model: str, seconds: float) -> Iterator[bool]:
    """Hold the lock during the block and yield True; yield False if the registry has none.

    The system releases the lock when the process ends, however it ends.

    Raises:
        StepError: Another process has held the lock for `seconds`.
    """
    from filelock import FileLock, Timeout

    path = file(registered_model)
    if path is None:
        yield False
        return
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            echo(f"Waiting for another register of {registered_model} …")
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


def file(registered_model: str) -> Path | None:
    """Return the lock file of a registered name; None if the registry is not a file."""
    registry = registry_file()
    if registry is None:
        return None
    return registry.with_name(f"{registry.name}-{sha256(registered_model.encode()).hexdigest()[:12]}.lock")
