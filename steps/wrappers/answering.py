"""Answer the rows of a call piece by piece: the next piece is queued before the one before it is finished.

So the engine's batch stays full, and however many rows there are, at most two pieces of them are in memory as token
ids. A request to a server is one piece.
"""

import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from .contract.errors import RequestError
from .contract.forms import PIECE_ROWS, Form
from .contract.requests import Request
from .engines.scheduler import Scheduler
from .engines.sequence import Sequence
from .serving.client import CLIENT

# The choices of a row, or the error of a row that cannot be answered while the others are.
Choices = list[Sequence] | RequestError


def answer(form: Form, params: dict[str, Any] | None, scheduler: Scheduler) -> Iterator[Choices]:
    """Yield the finished choices of every row, in order; raise RequestError before any is generated."""
    if len(form) > PIECE_ROWS and not is_spark_task():
        for _ in _requests(form, params):
            pass  # a row that is refused would waste the answers before it
    queued: deque[list[Choices]] = deque()
    try:
        for requests in _requests(form, params):
            queued.append([_choices(form, request) for request in requests])
            _submit(scheduler, queued[-1])
            if len(queued) > 1:
                yield from _finish(scheduler, queued[0])
                queued.popleft()
        while queued:
            yield from _finish(scheduler, queued[0])
            queued.popleft()
    finally:
        scheduler.cancel([sequence for piece in queued for sequence in _sequences(piece)])


def is_spark_task() -> bool:
    """Return True in a task of Spark: there an error would end the whole job."""
    pyspark = sys.modules.get("pyspark")
    return pyspark is not None and pyspark.TaskContext.get() is not None


def _requests(form: Form, params: dict[str, Any] | None) -> Iterator[list[Request | RequestError]]:
    """Yield the requests of each piece, with the error of a row that fails alone; raise the error of any other row."""
    alone = is_spark_task()
    for start, piece in enumerate(form.pieces()):
        requests: list[Request | RequestError] = []
        for index, row in enumerate(piece, start * PIECE_ROWS):
            try:
                requests.append(form.contract.request(row, params))
            except RequestError as error:
                if not alone and not form.may_be_empty(row):
                    raise error if len(form) == 1 else error.in_row(index) from None
                requests.append(error)
        yield requests


def _choices(form: Form, request: Request | RequestError) -> Choices:
    return request.sequences(form.contract.tokenizer) if isinstance(request, Request) else request


def _submit(scheduler: Scheduler, piece: list[Choices]) -> None:
    """Queue a piece. The client of a server does not wait for room in the queue."""
    sequences = _sequences(piece)
    if client := CLIENT.get():
        client.wait_for(sequences)
        scheduler.submit(sequences)
    else:
        scheduler.submit(sequences, patient=True)


def _finish(scheduler: Scheduler, piece: list[Choices]) -> list[Choices]:
    scheduler.wait(_sequences(piece))
    return piece


def _sequences(piece: list[Choices]) -> list[Sequence]:
    return [sequence for choices in piece if isinstance(choices, list) for sequence in choices]
