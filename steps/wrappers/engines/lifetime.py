"""Restart schedulers in a forked process, and stop them at exit."""

import atexit
import os
from functools import cache
from typing import Protocol
from weakref import WeakSet


class Lasting(Protocol):
    """What this file needs from a scheduler."""

    def begin_anew(self) -> None:
        """Begin anew in a forked process."""

    def stop(self) -> None:
        """End the thread."""


_KNOWN: "WeakSet[Lasting]" = WeakSet()


def look_after(scheduler: Lasting) -> None:
    """Have a scheduler begin anew in a forked process, and stop at exit if its thread was started."""
    _KNOWN.add(scheduler)


@cache
def stop_at_exit() -> None:
    """Have all threads stopped at exit. Call it when the libraries of an engine are loaded: it has to run before them.

    Python ends daemon threads wherever they are. In the middle of the engine's own code that aborts the whole process.
    """
    atexit.register(_stop_all)


def _stop_all() -> None:
    for scheduler in list(_KNOWN):
        scheduler.stop()


def _begin_anew() -> None:
    for scheduler in list(_KNOWN):
        scheduler.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
