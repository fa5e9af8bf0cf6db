"""Extend MLflow's scoring server with limits, cancellation and safe error messages.

MLflow's server predicts in a handful of threads, and no prediction learns that its client has left. A model that is
loaded while the server starts replaces the class of the server's app by a subclass that

- answers up to MAX_REQUESTS requests at once and refuses more of them (HTTP 429);
- reads and checks the body before MLflow does;
- cancels the sequences of a request when its client leaves or its time is over;
- removes the input and the traceback from error messages;
- answers HEAD and OPTIONS too;
- reports a model that does not answer at /ping (HTTP 503);
- adds the routes of OpenAI's API and /metrics (routes.py), streams of /invocations, and an API key (access.py).
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE
from starlette.exceptions import HTTPException

from ..contract.body import FrameRows, rewrite_body
from ..contract.errors import RequestError
from .access import key_check
from .client import CLIENT, Client
from .encoding import CONTENT_ENCODING, decoded
from .invocations import stream_row, streamed_row
from .messages import (
    CONTENT_TYPE,
    JSON_HEADER,
    BodyReplay,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
    safe_errors,
    send_error,
)
from .methods import (
    METHODS,
    MODEL_PATH,
    OWN_METHODS,
    as_get,
    header,
    methods_of,
    readable_by_page,
    send_methods,
    without_slash,
)
from .metrics import OTHER
from .routes import Service, error_response, service_router

SERVER_MODULE = "mlflow.pyfunc.scoring_server.app"
MAX_REQUESTS = 256


def extend_server(frame_rows: FrameRows, is_healthy: Callable[[], bool], service: Service | None = None) -> None:
    """If MLflow's scoring server is starting in this process, let its app be made of the extended class.

    This is the only place by which our routes get into MLflow's server.
    """
    if SERVER_MODULE in sys.modules:
        import fastapi

        # If two models are loaded, the last one is served.
        original = getattr(fastapi.FastAPI, "original", fastapi.FastAPI)
        extended = extended_app(original, frame_rows, is_healthy, service)
        fastapi.FastAPI = extended  # type: ignore[misc]


def extended_app(
    app_class: Any, frame_rows: FrameRows, is_healthy: Callable[[], bool], service: Service | None = None
) -> Any:
    """Return a subclass of an ASGI app's class, extended as the module describes.

    Args:
        app_class: The class of the app, such as fastapi.FastAPI.
        frame_rows: Drops the empty cells and foreign columns of a frame's rows.
        is_healthy: Returns False while the model does not answer.
        service: What the additional routes serve; None for no such routes.
    """
    members = {
        "original": app_class,
        "frame_rows": staticmethod(frame_rows),
        "is_healthy": staticmethod(is_healthy),
        "check_key": staticmethod(key_check()),
        "service": service,
        "own_routes": service_router(service) if service else None,
    }
    return type("ExtendedApp", (_Extension, app_class), members)


class _Extension:
    """The calls that an ASGI server makes to the extended app."""

    original: Any
    frame_rows: FrameRows
    is_healthy: Callable[[], bool]
    check_key: Callable[[str, bytes | None], None]
    service: Service | None
    own_routes: Any
    requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.original.__call__(self, scope, receive, send)
            return
        method, path = scope["method"], without_slash(scope["path"])
        scope = scope | {"path": path, "raw_path": path.encode()} if path != scope["path"] else scope
        methods = methods_of(path)
        send = self._counted(path, readable_by_page(scope, send))
        if method == "HEAD" and method in methods:
            scope, send = as_get(scope, send)
        if method == "OPTIONS" and methods:
            await send_methods(scope, send)
            return
        try:
            self.check_key(path, header(scope, b"authorization"))
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._route(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose client may use the server."""
        endpoint = (scope["method"], scope["path"])
        if endpoint in (("GET", "/ping"), ("GET", "/health")) and not self.is_healthy():
            message = "the model does not answer; the server's log has the details"
            await send_error(send, RequestError("engine_failed", message, TEMPORARILY_UNAVAILABLE))
        elif endpoint == ("POST", "/invocations"):
            await self._limited(self._answer, send_error, scope, receive, send)
        elif self.own_routes and (endpoint[1] in OWN_METHODS or endpoint[1].startswith("/v1/")):
            limited = self._limited if endpoint[0] == "POST" else _unlimited
            await limited(self._answer_own, _send_object, scope, receive, send)
        else:
            await self.original.__call__(self, scope, receive, send)

    async def _limited(
        self,
        answer: Callable[[Scope, Receive, Send], Awaitable[None]],
        refuse: Callable[[Send, RequestError], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a request, unless as many as possible are being answered."""
        if self.requests >= MAX_REQUESTS:
            message = f"{MAX_REQUESTS} requests are being answered already; try again later"
            await refuse(send, RequestError("queue_full", message, REQUEST_LIMIT_EXCEEDED))
            return
        self._start_threads()
        self.requests += 1
        try:
            await answer(scope, receive, send)
        finally:
            self.requests -= 1

    async def _answer_own(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to a route of ours."""
        try:
            # With an app, Starlette raises what it would otherwise answer as text.
            await self.own_routes(scope | {"app": self}, receive, send)
        except HTTPException as error:
            refusal = RequestError(
                "unknown_route",
                f"{scope['method']} {scope['path'][:80]} is not a route of this server",
                status=error.status_code,
            )
            await _send_object(send, refusal)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to /invocations, unless its client leaves before its body is complete."""
        try:
            body = await read_body(receive)
            if body is None:
                return
            body = decoded(body, header(scope, CONTENT_ENCODING))
            content_type = (header(scope, CONTENT_TYPE) or b"").decode("latin-1")
            body = rewrite_body(body, content_type, self.frame_rows)
            if self.service and (streamed := streamed_row(body)):
                await stream_row(self.service, *streamed, scope, receive, send)
                return
        except RequestError as error:
            await send_error(send, error)
            return
        client = Client()
        CLIENT.set(client)
        replay = BodyReplay(body, receive, client)
        replaced = (CONTENT_TYPE, CONTENT_ENCODING)
        headers = [*(entry for entry in scope["headers"] if entry[0] not in replaced), JSON_HEADER]
        try:
            await self.original.__call__(self, scope | {"headers": headers}, replay, safe_errors(send))
        finally:
            # A time-out leaves the thread of the prediction running: cancel its sequences then too.
            client.leave()
            replay.stop()

    def _start_threads(self) -> None:
        """Replace the server's few threads once, by as many as requests are answered at once."""
        if not hasattr(self, "_threads"):
            self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="phi3-request")
            asyncio.get_running_loop().set_default_executor(self._threads)

    def _counted(self, path: str, send: Send) -> Send:
        """Return ASGI's `send` that also counts the reply."""
        service = self.service
        if service is None:
            return send
        # Any other path is counted together with all of them, so that nobody can fill the memory with paths.
        route = f"{MODEL_PATH}{{id}}" if path.startswith(MODEL_PATH) else path if path in METHODS else OTHER

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                service.metrics.count_request(route, message["status"])
            await send(message)

        return send_counted


async def _unlimited(
    answer: Callable[[Scope, Receive, Send], Awaitable[None]], _refuse: Any, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request that costs nothing."""
    await answer(scope, receive, send)


async def _send_object(send: Send, error: RequestError) -> None:
    """Send an error in OpenAI's shape."""
    await error_response(error)({"type": "http"}, _nothing, send)


async def _nothing() -> Message:
    """Return what a response to an error never asks for."""
    return {"type": "http.disconnect"}
