"""A lock in a PostgreSQL store: PostgreSQL's advisory lock, which ends with its connection, however a process ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from hashlib import sha256

# Seconds between two attempts.
PAUSE = 0.2


class HeldByAnotherError(Exception):
    """Another process has held the lock all the time."""


def is_postgresql(uri: str) -> bool:
    """Return True if a store's address is that of a PostgreSQL database, and not of a server in front of it."""
    return uri.partition("://")[0].partition("+")[0] in ("postgresql", "postgres")


@contextlib.contextmanager
def held(uri: str, name: str, seconds: float, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a name during the block.

    Args:
        uri: The database.
        name: Locks of different names do not know each other.
        seconds: How long to wait for another process.
        on_wait: Called once before waiting.

    Raises:
        HeldByAnotherError: Another process has held the lock for `seconds`.
    """
    from sqlalchemy import NullPool, create_engine, text

    number = int.from_bytes(sha256(name.encode()).digest()[:8], signed=True)
    # AUTOCOMMIT: a transaction that stays open would keep PostgreSQL from cleaning up.
    engine = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        attempt = text("SELECT pg_try_advisory_lock(:number)").bindparams(number=number)
        deadline, waits = time.monotonic() + seconds, False
        while not connection.execute(attempt).scalar():
            if time.monotonic() >= deadline:
                raise HeldByAnotherError("another process holds its lock")
            if not waits:
                on_wait()
                waits = True
            time.sleep(PAUSE)
        # Closing the connection releases it.
        yield
