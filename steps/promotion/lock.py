"""One register at a time for each registered name, where the store is a SQLite file: a lock file beside it.

A server has no such place: there `register` reads again after it wrote, and repairs (steps/register.py).
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
    """Wait for the lock, for `seconds` at most; yields whether there is one. It falls with the process."""
    from filelock import FileLock, Timeout

    path = file(registered_model)
    if path is None:
        yield False
        return
    lock = FileLock(path)
    try:
        _acquire(lock, registered_model, seconds)
    except Timeout:
        raise StepError(
            f"Another register of {registered_model} has held {path} for more than promotion.lock_seconds={seconds:g}. "
            "Let it end or end it: the lock falls with its process."
        ) from None
    try:
        yield True
    finally:
        lock.release()


def file(registered_model: str) -> Path | None:
    """The lock file of a registered name; None where the registry is no file."""
    registry = registry_file()
    if registry is None:
        return None
    return registry.with_name(f"{registry.name}-{sha256(registered_model.encode()).hexdigest()[:12]}.lock")


def _acquire(lock, registered_model: str, seconds: float) -> None:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        echo(f"Waiting for another register of {registered_model} …")
        lock.acquire(timeout=seconds)
