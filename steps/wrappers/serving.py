"""What a model needs of MLflow's scoring server, and the server does not offer.

The server runs predictions in a handful of threads and never tells one that its client is gone. While it
starts, a model can put `WatchedApp` around it: as many requests come in together as threads are made here,
more are refused at once (HTTP 429), and when a client leaves or its time is over, the sequences that
were made for it are cancelled. The server's answer to params of a wrong type also loses the repeated prompt here.
"""

import asyncio
import contextvars
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SERVER = "mlflow.pyfunc.scoring_server.app"
MAX_REQUESTS = 256


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


def watch_clients() -> None:
    """Have the scoring server that is starting in this process, if one is, made of `WatchedApp`."""
    if SERVER in sys.modules:
        import fastapi

        fastapi.FastAPI = _watched(fastapi.FastAPI)


def _watched(app_class: type) -> type:
    if getattr(app_class, "watches_clients", False):
        return app_class

    class WatchedApp(app_class):
        watches_clients = True
        requests = 0

        async def __call__(self, scope, receive, send) -> None:
            if scope["type"] != "http" or scope["path"] != "/invocations":
                return await super().__call__(scope, receive, send)
            if self.requests >= MAX_REQUESTS:
                return await _refuse(send)
            if self.requests == 0:
                self._make_threads()
            self.requests += 1
            client = Client()
            CLIENT.set(client)
            watched = _Receiver(receive, client)
            try:
                await super().__call__(scope, watched, _without_prompt(send))
            finally:
                self.requests -= 1
                # Also on a time-out, which leaves the thread of the prediction behind.
                client.leave()
                watched.stop()

        def _make_threads(self) -> None:
            if not hasattr(self, "_threads"):
                self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="phi3-request")
                asyncio.get_running_loop().set_default_executor(self._threads)

    return WatchedApp


class _Receiver:
    """ASGI's `receive`, which listens for the client's leaving as soon as the request is whole."""

    def __init__(self, receive, client: Client):
        self._receive, self._client = receive, client
        self._listener: asyncio.Task | None = None

    async def __call__(self) -> dict[str, Any]:
        if self._listener is not None:
            return await asyncio.shield(self._listener)
        message = await self._receive()
        if not message.get("more_body", False):
            self._listener = asyncio.create_task(self._listen())
        return message

    async def _listen(self) -> dict[str, Any]:
        message = await self._receive()
        self._client.leave()
        return message

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.cancel()


def _without_prompt(send):
    """ASGI's `send`, which takes the input out of what MLflow says of params that it refuses itself."""
    started: list[dict[str, Any]] = []

    async def pass_on(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] == 400:
            started.append(message)
            return
        if started:
            body = _cut(message.get("body", b""))
            start = started.pop()
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            await send(start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
            message = message | {"body": body}
        await send(message)

    return pass_on


def _cut(body: bytes) -> bytes:
    try:
        content = json.loads(body)
        said = content["message"]
    except (ValueError, KeyError, TypeError):
        return body
    if not said.startswith("Failed to predict data"):
        return body
    return json.dumps(content | {"message": f"[invalid_params] {said.rpartition('Error: ')[2]}"}).encode()


async def _refuse(send) -> None:
    message = f"[queue_full] {MAX_REQUESTS} requests are being answered already: try again later"
    body = json.dumps({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
