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
def clean_end() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM raise one KeyboardInterrupt in the block, so that a step leaves its runs in order.

    On Ctrl-C `mlflow run` sends its step a SIGTERM as well, which would end the step while it cleans up. An interrupt
    that comes while Python cleans an object up, where every exception is ignored, is repeated.
    """
    ending = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        # The user may press Ctrl-C again, if the clean-up hangs.
        if number == signal.SIGINT or not ending:
            ending = True
            raise KeyboardInterrupt

    def repeat(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            hook(ignored)
            return
        # To that thread, to wake it from a call that waits.
        again = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

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
