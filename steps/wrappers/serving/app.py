"""What a model needs of MLflow's scoring server, and the server does not offer.

The server runs predictions in a handful of threads and never tells one that its client is gone. While it
starts, a model can put `WatchedApp` around it: as many requests come in together as threads are made here,
more are refused at once (HTTP 429), and when a client leaves or its time is over, the sequences that
were made for it are cancelled. A body is read and checked here first, no refusal repeats the input or shows a
traceback, and /ping tells of an engine that fails.
"""

import asyncio
import contextvars
import json
import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE, ErrorCode

from ..contract.body import INVALID_REQUEST, MAX_BYTES, FrameRows, accepted
from ..contract.errors import RequestError, engine_failed

SERVER = "mlflow.pyfunc.scoring_server.app"
MAX_REQUESTS = 256
SHOWN_CHARACTERS = 300
CONTENT_TYPE = (b"content-type", b"application/json")

logger = logging.getLogger(__name__)


class Client:
    """Whoever waits for a reply; `leave` cancels all that is being made for them."""

    def __init__(self):
        self.gone = False
        self._sequences: list[Any] = []

    def waits_for(self, sequences: list[Any]) -> None:
        self._sequences += sequences
        if self.gone:
            self.leave()

    def leave(self) -> None:
        self.gone = True
        for sequence in self._sequences:
            sequence.cancelled = True


CLIENT: contextvars.ContextVar[Client | None] = contextvars.ContextVar("client", default=None)


def watch_clients(frame_rows: FrameRows, is_well: Callable[[], bool]) -> None:
    """Have the scoring server that is starting in this process, if one is, made of `WatchedApp`."""
    if SERVER in sys.modules:
        import fastapi

        # Of two models that are loaded, the last one is served.
        fastapi.FastAPI = _watched(getattr(fastapi.FastAPI, "unwatched", fastapi.FastAPI), frame_rows, is_well)


def _watched(app_class: type, frame_rows: FrameRows, is_well: Callable[[], bool]) -> type:
    """The class of the server's app with `_Watched` before it."""
    own = {"unwatched": app_class, "frame_rows": staticmethod(frame_rows), "is_well": staticmethod(is_well)}
    return type("WatchedApp", (_Watched, app_class), own)


class _Watched:
    """ASGI's calls of the server's app, as the module says."""

    frame_rows: FrameRows
    is_well: Callable[[], bool]
    requests = 0

    async def __call__(self, scope, receive, send) -> None:
        asked = (scope.get("method"), scope.get("path"))
        if asked in (("GET", "/ping"), ("GET", "/health")) and not self.is_well():
            said = "the engine's last step failed: the server's log says how"
            return await _refuse(send, RequestError("engine_failed", said, TEMPORARILY_UNAVAILABLE))
        if asked != ("POST", "/invocations"):
            return await super().__call__(scope, receive, send)
        if self.requests >= MAX_REQUESTS:
            said = f"{MAX_REQUESTS} requests are being answered already: try again later"
            return await _refuse(send, RequestError("queue_full", said, REQUEST_LIMIT_EXCEEDED))
        self._make_threads()
        self.requests += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.requests -= 1

    async def _answer(self, scope, receive, send) -> None:
        try:
            body = await _read(receive)
            if body is None:
                return
            body = accepted(body, _content_type(scope), self.frame_rows)
        except RequestError as error:
            return await _refuse(send, error)
        client = Client()
        CLIENT.set(client)
        replayed = _Replayed(body, receive, client)
        headers = [*(header for header in scope["headers"] if header[0] != b"content-type"), CONTENT_TYPE]
        try:
            await super().__call__(scope | {"headers": headers}, replayed, _without_input(send))
        finally:
            # Also on a time-out, which leaves the thread of the prediction behind.
            client.leave()
            replayed.stop()

    def _make_threads(self) -> None:
        if not hasattr(self, "_threads"):
            self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="phi3-request")
            asyncio.get_running_loop().set_default_executor(self._threads)


def _content_type(scope: dict[str, Any]) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"), None)


async def _read(receive) -> bytes | None:
    """The whole body, None if the client has left before its end."""
    try:
        return await asyncio.wait_for(_joined(receive), MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get())
    except TimeoutError:
        raise RequestError("body_timeout", "the body did not arrive in time", status=408) from None


async def _joined(receive) -> bytes | None:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BYTES:
            raise RequestError("too_large", f"a body holds at most {MAX_BYTES} bytes, got at least {len(body)}")
        more = message.get("more_body", False)
    return bytes(body)


class _Replayed:
    """ASGI's `receive` for a body that was read already, which listens for the client's leaving all the while."""

    def __init__(self, body: bytes, receive, client: Client):
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self._receive, self._client = receive, client
        self._listener = asyncio.create_task(self._listen())

    async def __call__(self) -> dict[str, Any]:
        return self._messages.pop() if self._messages else await asyncio.shield(self._listener)

    async def _listen(self) -> dict[str, Any]:
        message = await self._receive()
        self._client.leave()
        return message

    def stop(self) -> None:
        self._listener.cancel()


def _without_input(send):
    """ASGI's `send`, which takes the input and the traceback out of what MLflow says of an error."""
    started: list[dict[str, Any]] = []
    body = bytearray()

    async def pass_on(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            started.append(message)
        elif not started:
            await send(message)
        else:
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await _refuse(send, _told(started[0]["status"], bytes(body)))

    return pass_on


def _told(status: int, body: bytes) -> RequestError:
    """What the client is told of an error that the server answers."""
    if status == 504:
        return RequestError("timed_out", "the reply took longer than this server waits", status=status)
    try:
        content = json.loads(body)
        said, trace = content["message"], content.get("stack_trace")
    except (ValueError, KeyError, TypeError):
        return engine_failed()
    if ours := re.match(r"\[([a-z0-9_]+)\] ", said):
        return RequestError(ours[1], said[ours.end() :], ErrorCode.Value(content["error_code"]), status)
    if said.startswith("Encountered an unexpected error"):
        logger.error("A request failed:\n%s", trace)
        return engine_failed()
    if said.startswith("Failed to predict data"):
        return RequestError("invalid_params", said.rpartition("Error: ")[2][:SHOWN_CHARACTERS])
    return RequestError("invalid_request", INVALID_REQUEST)


async def _refuse(send, error: RequestError) -> None:
    body = error.serialize_as_json().encode()
    headers = [CONTENT_TYPE, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.get_http_status_code(), "headers": headers})
    await send({"type": "http.response.body", "body": body})
