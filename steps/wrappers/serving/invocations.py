"""A stream of /invocations: a request with `stream: true` is answered in server-sent events, each a chunk.

A chat model sends OpenAI's chunks. A prompt model sends each piece of its text as a JSON string.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from ..contract.body import ENVELOPE, opened
from ..contract.errors import RequestError
from ..engines.sequence import Sequence
from .completing import submitted
from .events import DONE, Choices, Head, chat_choices, chat_head, events, prompt_choices
from .messages import Receive, Scope, Send

if TYPE_CHECKING:
    from .routes import Service

Fields = dict[str, Any]
# By the subject of an interface: the head of its chunks, and their choices.
STREAMS: dict[str, tuple[Callable[[str], Head] | None, Choices]] = {
    "messages": (chat_head, chat_choices),
    "prompt": (None, prompt_choices),
}


def streamed_row(body: bytes) -> tuple[Fields, Fields] | None:
    """Return the row and the params of a rewritten body that asks for a stream; None if it asks for none."""
    if b'"stream"' not in body:
        return None
    content = json.loads(body)
    rows, params = opened(content if ENVELOPE in content else content["inputs"], None)
    row = rows[0] if isinstance(rows, list) and len(rows) == 1 else rows
    if not isinstance(row, dict) or True not in (row.get("stream") is True, (params or {}).get("stream") is True):
        return None  # no row, many rows, or a value that the contract refuses
    return _without_stream(row), _without_stream(params or {})


def _without_stream(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}


async def stream_row(
    service: "Service", row: Fields, params: Fields, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer one row as a stream; raise RequestError if it is refused."""
    from .routes import event_response

    sequences = await asyncio.to_thread(_sequences, service, row, params)
    with submitted(service.scheduler, sequences) as awake:
        await event_response(_events(service, awake, sequences))(scope, receive, send)


def _sequences(service: "Service", row: Fields, params: Fields) -> list[Sequence]:
    contract = service.contract
    rows = contract.interface.rows(row)
    if len(rows) != 1:
        raise RequestError("stream", f"a stream answers one row, got {len(rows)}")
    request = contract.request(rows[0], params)
    if request.n != 1:
        raise RequestError("stream", f"a stream of /invocations has n = 1, got {request.n}")
    return request.sequences(contract.tokenizer)


async def _events(service: "Service", awake: asyncio.Event, sequences: list[Sequence]) -> AsyncIterator[str]:
    make_head, choices = STREAMS[service.contract.interface.SUBJECT]
    head = make_head(service.identity.shown) if make_head else None

    def wrap(choice: Any) -> Any:
        return choice if head is None else head | {"choices": [choice]}

    async for line in events(awake, sequences, choices, wrap):
        yield line
    yield DONE
