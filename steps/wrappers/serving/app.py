"""Extend MLflow's scoring server with limits, cancellation and safe error messages.

MLflow's server predicts in a handful of threads, and no prediction learns that its client has left. A model that is
loaded while the server starts replaces the class of the server's app by a subclass that

- answers up to MAX_REQUESTS requests at once and refuses more of them (HTTP 429);
- reads and checks the body before MLflow does;
- cancels the sequences of a request when its client leaves or its time is over;
- removes the input and the traceback from error messages;
- answers HEAD and OPTIONS too;
- reports a model that does not answer at /ping (HTTP 503).
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlflow.protos.databricks_pb2 import REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE

from ..contract.body import FrameRows, rewrite_body
from ..contract.errors import RequestError
from .client import CLIENT, Client
from .encoding import CONTENT_ENCODING, decoded
from .messages import CONTENT_TYPE, JSON_HEADER, BodyReplay, Receive, Scope, Send, read_body, safe_errors, send_error
from .methods import METHODS, as_get, header, readable_by_page, send_methods

SERVER_MODULE = "mlflow.pyfunc.scoring_server.app"
MAX_REQUESTS = 256


def extend_server(frame_rows: FrameRows, is_healthy: Callable[[], bool]) -> None:
    """If MLflow's scoring server is starting in this process, let its app be made of the extended class."""
    if SERVER_MODULE in sys.modules:
        import fastapi

        # If two models are loaded, the last one is served.
        original = getattr(fastapi.FastAPI, "original", fastapi.FastAPI)
        extended = extended_app(original, frame_rows, is_healthy)
        fastapi.FastAPI = extended  # type: ignore[misc]


def extended_app(app_class: Any, frame_rows: FrameRows, is_healthy: Callable[[], bool]) -> Any:
    """Return a subclass of an ASGI app's class, extended as the module describes.

    Args:
        app_class: The class of the app, such as fastapi.FastAPI.
        frame_rows: Drops the empty cells and foreign columns of a frame's rows.
        is_healthy: Returns False while the model does not answer.
    """
    members = {"original": app_class, "frame_rows": staticmethod(frame_rows), "is_healthy": staticmethod(is_healthy)}
    return type("ExtendedApp", (_Extension, app_class), members)


class _Extension:
    """The calls that an ASGI server makes to the extended app."""

    original: Any
    frame_rows: FrameRows
    is_healthy: Callable[[], bool]
    requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope.get("method"), scope.get("path")
        send = readable_by_page(scope, send)
        if method == "HEAD" and path in METHODS and method in METHODS[path]:
            scope, send = as_get(scope, send)
        endpoint = (scope.get("method"), path)
        if method == "OPTIONS" and path in METHODS:
            await send_methods(scope, send)
        elif endpoint in (("GET", "/ping"), ("GET", "/health")) and not self.is_healthy():
            message = "the model does not answer; the server's log has the details"
            await send_error(send, RequestError("engine_failed", message, TEMPORARILY_UNAVAILABLE))
        elif endpoint != ("POST", "/invocations"):
            await self.original.__call__(self, scope, receive, send)
        elif self.requests >= MAX_REQUESTS:
            message = f"{MAX_REQUESTS} requests are being answered already; try again later"
            await send_error(send, RequestError("queue_full", message, REQUEST_LIMIT_EXCEEDED))
        else:
            self._start_threads()
            self.requests += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self.requests -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, unless its client leaves before its body is complete."""
        try:
            body = await read_body(receive)
            if body is None:
                return
            body = decoded(body, header(scope, CONTENT_ENCODING))
            content_type = (header(scope, CONTENT_TYPE) or b"").decode("latin-1")
            body = rewrite_body(body, content_type, self.frame_rows)
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
