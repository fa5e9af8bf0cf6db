"""What Ctrl-C does: a step ends with one line and exit code 130, wherever it is."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

INTERRUPTED = "Interrupted; run it again to go on"
# What shells call the end of a command by Ctrl-C.
EXIT_CODE = 130
# Seconds until an interrupt that was lost or came at a bad moment is repeated: that code has returned by then.
AGAIN = 0.05
# How often an interrupt waits for the end of a transaction: 3 s in all. Then the transaction hangs.
PATIENCE = 60
# In their functions an interrupt can leave a transaction open, and with it the lock of a SQLite file.
TRANSACTIONAL = ("sqlalchemy.", "alembic.")


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line if Ctrl-C has ended the process before its step began; print any other error as Python does."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def clean_end() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM raise one KeyboardInterrupt in the block, so that a step leaves its runs in order.

    On Ctrl-C `mlflow run` sends its step a SIGTERM as well, which would end the step while it cleans up. An interrupt
    that comes while Python cleans an object up, where every exception is ignored, is repeated. So is one that comes in
    a transaction: if it stopped the roll-back, the clean-up would find the database locked.
    """
    ending = False
    waits = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending, waits
        # The user may press Ctrl-C again, if the clean-up hangs.
        if ending and number != signal.SIGINT:
            return
        if waits < PATIENCE and _in_transaction(frame):
            waits += 1
            _send_again(number)
            return
        ending = True
        raise KeyboardInterrupt

    def repeat(ignored: "sys.UnraisableHookArgs") -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            _send_again(signal.SIGINT)
        else:
            hook(ignored)

    hook, sys.unraisablehook = sys.unraisablehook, repeat
    # Only the main thread may choose what a signal does.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            # After an interrupt Python ends at once; another one would only print a traceback of that.
            signal.signal(number, signal.SIG_IGN if ending else handler)
        # If an interrupt comes out of `exec`, which dataclasses use, Python remembers it, and `python -m` ends by a
        # signal instead of our exit code. Another `exec` makes it forget.
        exec("")


def _in_transaction(frame: FrameType | None) -> bool:
    """Return True if the frame, or one that called it, belongs to a library that holds a transaction open."""
    while frame:
        if frame.f_globals.get("__name__", "").startswith(TRANSACTIONAL):
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Repeat a signal in a moment, to the main thread, to wake it from a call that waits."""
    again = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
    again.daemon = True
    again.start()
