"""The error that a user reads: all faults at once, each with what was wrong and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class StepError(Exception):
    """A step refuses to go on; `faults` are whole sentences for the user, one a line."""

    exit_code = 1

    def __init__(self, *faults: str):
        super().__init__("\n".join(faults))
        self.faults = faults


class RowErrors(StepError):
    """A step is done, but some rows of its prompt set have an error."""

    exit_code = 3


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, with the nearest known one and the whole list."""
    names = sorted(available)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}."
