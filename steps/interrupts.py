"""What Ctrl-C does: a step ends with one line and exit code 130, wherever it is."""

import _thread
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType

INTERRUPTED = "Interrupted; run it again to go on"
# What shells call the end of a command by Ctrl-C.
EXIT_CODE = 130
# Seconds until an interrupt that was lost is repeated: the code that has lost it has returned by then.
AGAIN = 0.05


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line if Ctrl-C has ended the process before its step began; print any other error as Python does."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def none_lost() -> Iterator[None]:
    """Repeat an interrupt that comes while Python cleans an object up, where it ignores every exception."""
    before = sys.unraisablehook

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        again = threading.Timer(AGAIN, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
