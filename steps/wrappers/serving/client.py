"""The client of a served request, and the sequences that are generated for it."""

from contextvars import ContextVar

from ..engines.sequence import Sequence


class Client:
    """The client of one request. When it leaves, its sequences are cancelled."""

    def __init__(self) -> None:
        self._has_left = False
        self._sequences: list[Sequence] = []

    def wait_for(self, sequences: list[Sequence]) -> None:
        """Add sequences that the client waits for; cancel them at once if it has left already."""
        self._sequences += sequences
        if self._has_left:
            self.leave()

    def leave(self) -> None:
        """Cancel every sequence that the client waits for."""
        self._has_left = True
        for sequence in self._sequences:
            sequence.cancel()


# The client of the request that this context answers. The server's threads inherit the context of their request.
CLIENT: ContextVar[Client | None] = ContextVar("client", default=None)
