"""Complete the sequences of a request without a thread: the engine's thread wakes the server's event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from threading import Event

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

from ..contract.errors import RequestError
from ..engines.scheduler import Scheduler
from ..engines.sequence import Sequence


class _Waking(Event):
    """An event that also wakes a task of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, awake: asyncio.Event) -> None:
        super().__init__()
        self._loop, self._awake = loop, awake

    def set(self) -> None:
        super().set()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._awake.set)


@contextlib.contextmanager
def submitted(scheduler: Scheduler, sequences: list[Sequence]) -> Iterator[asyncio.Event]:
    """Queue sequences; yield the event of their progress. Whatever ends the block releases their places."""
    loop, awake = asyncio.get_running_loop(), asyncio.Event()
    for sequence in sequences:
        sequence.progress = _Waking(loop, awake)
    try:
        scheduler.submit(sequences)
        yield awake
    finally:
        scheduler.cancel(sequences)


async def complete(awake: asyncio.Event, sequences: list[Sequence]) -> None:
    """Return when every sequence has ended; raise the error of one that failed, or that the time is over."""
    timeout = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(timeout):
            async for _ in advances(awake, sequences):
                pass
    except TimeoutError:
        raise RequestError("timed_out", "the reply took longer than this server waits", status=504) from None


async def advances(awake: asyncio.Event, sequences: list[Sequence]) -> AsyncIterator[None]:
    """Yield whenever a sequence has grown or ended; end when all have ended. Raise the error of one that failed."""
    ended = False
    while not ended:
        await awake.wait()
        awake.clear()
        ended = all(sequence.done.is_set() for sequence in sequences)
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        yield
