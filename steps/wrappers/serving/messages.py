"""ASGI messages of a request: read its body, replay it to MLflow, and make MLflow's errors safe to send."""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.protos.databricks_pb2 import ErrorCode

from ..contract.body import INVALID_REQUEST
from ..contract.errors import RequestError, engine_failed
from ..contract.size import MAX_BYTES
from .client import Client

Message = MutableMapping[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CONTENT_TYPE = b"content-type"
JSON_HEADER = (CONTENT_TYPE, b"application/json")
# The most characters of one of MLflow's own messages that are shown.
SHOWN_CHARACTERS = 300

logger = logging.getLogger(__name__)


async def read_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client leaves before its end."""
    try:
        timeout = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]
        return await asyncio.wait_for(_joined_body(receive), timeout)
    except TimeoutError:
        raise RequestError("body_timeout", "the body did not arrive in time", status=408) from None


async def _joined_body(receive: Receive) -> bytes | None:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise RequestError("too_large", f"a body may have at most {MAX_BYTES} bytes, got at least {len(body)}")
        more = message.get("more_body", False)
    return bytes(body)


class BodyReplay:
    """ASGI's `receive` for a body that was read already. Meanwhile it listens for the client to leave."""

    def __init__(self, body: bytes, receive: Receive, client: Client) -> None:
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._receive, self._client = receive, client
        self._listener = asyncio.create_task(self._listen())

    async def __call__(self) -> Message:
        """Return the body first, then the message that the client has left."""
        return self._messages.pop() if self._messages else await asyncio.shield(self._listener)

    async def _listen(self) -> Message:
        message = await self._receive()
        self._client.leave()
        return message

    def stop(self) -> None:
        """Stop listening."""
        self._listener.cancel()


def safe_errors(send: Send) -> Send:
    """Return ASGI's `send` that replaces each error reply by one without the input and the traceback."""
    error_start: Message | None = None
    body = bytearray()

    async def send_safely(message: Message) -> None:
        nonlocal error_start
        if message["type"] == "http.response.start" and message["status"] >= 400:
            error_start = message
        elif error_start is None:
            await send(message)
        else:
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await send_error(send, safe_error(error_start["status"], bytes(body)))

    return send_safely


def safe_error(status: int, body: bytes) -> RequestError:
    """Return the error to send in place of one of the server's, with its HTTP status and body."""
    if status == 504:
        return RequestError("timed_out", "the reply took longer than this server waits", status=status)
    try:
        content = json.loads(body)
        message, trace = content["message"], content.get("stack_trace")
    except (ValueError, KeyError, TypeError):
        return engine_failed()
    if code := re.match(r"\[([a-z0-9_]+)\] ", message):
        return RequestError(code[1], message[code.end() :], ErrorCode.Value(content["error_code"]), status)
    # The beginnings of MLflow's own messages (mlflow/pyfunc/scoring_server/__init__.py).
    if message.startswith("Encountered an unexpected error"):
        logger.error("A request failed:\n%s", trace)
        return engine_failed()
    if message.startswith("Failed to predict data"):
        return RequestError("invalid_params", message.rpartition("Error: ")[2][:SHOWN_CHARACTERS])
    return RequestError("invalid_request", INVALID_REQUEST)


async def send_error(send: Send, error: RequestError) -> None:
    """Send an error as a whole reply in MLflow's JSON format."""
    body = error.serialize_as_json().encode()  # type: ignore[no-untyped-call]
    headers = [JSON_HEADER, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.get_http_status_code(), "headers": headers})
    await send({"type": "http.response.body", "body": body})
