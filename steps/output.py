"""What a step prints: its own lines, and none of a library's chatter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


def echo(line: str) -> None:
    """Print one line about the step's progress, at once."""
    print(line, flush=True)


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Hide what a library prints, logs and warns about. If the block raises, a traceback ends with 2,000 characters."""
    printed = io.StringIO()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        # Only a traceback shows the note: an error that becomes one sentence for the user says enough.
        if printed.getvalue().strip():
            error.add_note(printed.getvalue()[-2000:])
        raise
    finally:
        logging.disable(previous)
