"""Keep the chatter of libraries from the user: a step says itself how far it is."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a library prints about its own progress from the user, unless it fails."""
    printed = io.StringIO()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    except Exception:
        if printed.getvalue().strip():
            print(printed.getvalue()[-2000:], file=sys.__stderr__)
        raise
    finally:
        logging.disable(previous)
