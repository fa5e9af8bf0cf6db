"""What a step prints: its own lines, and none of a library's chatter."""

import contextlib
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

# What takes the place of a character that the output's encoding does not have.
PLAIN = str.maketrans({"★": "*", "…": "...", "→": "->", "“": '"', "”": '"'})


# A step is never silent for longer than this, in seconds. The next sign of life is printed then.
SILENCE = os.environ.get("PHI3_LONGEST_SILENCE", "")
LONGEST_SILENCE = float(SILENCE) if SILENCE.isdecimal() else 9.0
# The clock and the words of the signs of life: when a line was printed last, and what the step is doing.
_last_line = time.monotonic()
_activities: "list[Activity]" = []


@dataclass(eq=False)
class Activity:
    """What a step is doing, in words that may change while it does it."""

    words: str


def echo(line: str) -> None:
    """Print one line about the step's progress, at once."""
    global _last_line
    _last_line = time.monotonic()
    print(line, flush=True)


@contextlib.contextmanager
def activity(words: str) -> Iterator[Activity]:
    """Say what the block does, for the signs of life that are printed while it takes long."""
    doing = Activity(words)
    _activities.append(doing)
    try:
        yield doing
    finally:
        _activities.remove(doing)


def duration(seconds: float) -> str:
    """Return a time for people: 40 s, 12 min, 3.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def signs_of_life() -> Iterator[None]:
    """Print what the step is doing whenever it has printed nothing for LONGEST_SILENCE seconds."""
    # A library's output may be hidden meanwhile, which replaces sys.stdout.
    global _last_line
    stream, ended, started = sys.stdout, threading.Event(), time.monotonic()
    _last_line = started

    def watch() -> None:
        global _last_line
        while not ended.wait(max(0.1, _last_line + LONGEST_SILENCE - time.monotonic())):
            now = time.monotonic()
            if now - _last_line >= LONGEST_SILENCE:
                _last_line = now
                words = _activities[-1].words if _activities else "working"
                stream.write(f"… {words} ({now - started:.0f} s so far)\n")
                stream.flush()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class LastingStream:
    """An output stream that never ends a step: not by a character it cannot encode, nor because nobody reads it.

    `| head` closes the pipe after some lines. What is printed afterwards is dropped, and the step goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text as far as the encoding has its characters; return its length."""
        try:
            self._stream.write(self._encodable(text))
        except OSError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
        return text

    def _drop(self) -> None:
        """Let the system drop this output from now on, also what is still buffered."""
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Have standard output and error last as long as the block, even if they are closed."""
    with contextlib.ExitStack() as opened:
        streams = [stream or opened.enter_context(Path(os.devnull).open("w")) for stream in (sys.stdout, sys.stderr)]
        output, errors = (LastingStream(stream) for stream in streams)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                yield
            finally:
                output.flush()


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
