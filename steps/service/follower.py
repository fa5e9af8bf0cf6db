"""Follow an alias: requests go to the version that it names, and each is finished by the version that it began on."""

import threading
from collections.abc import Callable
from typing import Any

from steps.errors import StepError
from steps.output import echo
from steps.redaction import redacted
from steps.service.loading import Loaded


class Follower:
    """The ASGI app in front of the loaded versions."""

    def __init__(self, loaded: Loaded, find_version: Callable[[], str], load: Callable[[str], Loaded]) -> None:
        """Serve a version that is loaded.

        Args:
            loaded: The version to begin with.
            find_version: Returns the number of the version that the alias names.
            load: Loads a version by its number and checks it, or raises StepError.
        """
        self._current, self._find_version, self._load = loaded, find_version, load
        self._failed: str | None = None
        self._stopped = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request to the current version. It stays in memory until its last request is finished."""
        await self._current.app(scope, receive, send)

    def start(self, poll_seconds: float) -> None:
        """Look for another version every few seconds, in a thread of its own."""
        threading.Thread(target=self._poll, args=(poll_seconds,), name="phi3-follow", daemon=True).start()

    def stop(self) -> None:
        """Look for no more versions."""
        self._stopped.set()

    def _poll(self, poll_seconds: float) -> None:
        while not self._stopped.wait(poll_seconds):
            self.follow()

    def follow(self) -> None:
        """Go over to the version that the alias names. If it cannot be loaded, the old one keeps serving."""
        try:
            version = self._find_version()
        except Exception as error:  # the registry may be away for a while
            if self._failed != "":
                self._failed = ""
                echo(f"The alias cannot be read: {redacted(_first_line(error))}. {self._still()}")
            return
        if version in (self._current.version, self._failed):
            return
        try:
            loaded = self._load(version)
        except StepError as error:
            self._failed = version
            echo(f"{redacted(error.faults[0])} {self._still()}")
            return
        self._failed, old = None, self._current.version
        self._current = loaded
        echo(f"Serving version {version}; requests that began on version {old} are finished by it.")

    def _still(self) -> str:
        return f"Version {self._current.version} keeps serving."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
