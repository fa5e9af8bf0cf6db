"""Errors that end a step with a message for the user and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches

# The most characters of a library's error that are shown.
REASON_CHARACTERS = 300


class StepError(Exception):
    """A step cannot continue.

    Attributes:
        faults: Complete sentences for the user, printed one per line: what was wrong, and what to do.
        exit_code: Exit code of the command.
    """

    exit_code = 1

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class RowErrors(StepError):
    """A step has finished, but some rows of its prompt set, or some variants of the main job, failed."""

    exit_code = 3


class VariantErrors(StepError):
    """Some variants failed. The others are done."""


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """Return "Unknown <kind> '<name>'." with the closest match, if there is one, and all available names."""
    names = sorted(available)
    matches = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{matches[0]}'?" if matches else ""
    return f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}."


def reason(error: BaseException) -> str:
    """Return what kind of error it is and its own words, in one line."""
    words = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split()).rstrip(".")
    return f"{type(error).__name__}: {words[:REASON_CHARACTERS]}" if words else type(error).__name__


def sentences_of(error: Exception) -> str:
    """Return why something failed: the sentences of a StepError, or what `reason` returns."""
    return "; ".join(error.faults) if isinstance(error, StepError) else reason(error)
