"""The routes that a served model adds to MLflow's: OpenAI's API, the list of models, the metrics.

A route reads a body, has the contract make requests of it, and sends what the engine makes of them. It checks nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from ..contract import chat, completions
from ..contract.body import read_object
from ..contract.errors import RequestError, engine_failed
from ..contract.interfaces import COMPLETIONS, INTERFACES, Interface
from ..contract.openai import (
    chat_row,
    completion_row,
    error_object,
    wants_running_usage,
    wants_stream,
    wants_usage,
)
from ..contract.requests import Contract
from ..contract.size import check_size
from ..contract.usage import usage
from ..engines.scheduler import Scheduler
from ..engines.sequence import Sequence
from .completing import complete, submitted
from .encoding import CONTENT_ENCODING, decoded
from .events import (
    DONE,
    Choices,
    Head,
    chat_choices,
    chat_head,
    completion_choices,
    completion_head,
    event,
    events,
)
from .identity import Identity
from .messages import CONTENT_TYPE, Receive, Scope, Send, read_body
from .methods import header
from .metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What is served."""

    identity: Identity
    contract: Contract
    scheduler: Scheduler
    metrics: Metrics


@dataclass(frozen=True)
class Kind:
    """One of OpenAI's two routes.

    Attributes:
        interface: How the contract reads a row.
        rows: Makes the rows of a body.
        reply: Makes the reply of the finished choices of every row.
        head: Makes the beginning of every chunk of a stream.
        choices: Makes the choices of chunks.
    """

    interface: Interface
    rows: Callable[[dict[str, Any]], list[dict[str, Any]]]
    reply: Callable[[str, list[list[Sequence]]], dict[str, Any]]
    head: Callable[[str], Head]
    choices: Choices


CHAT = Kind(
    INTERFACES["chat"],
    lambda body: [chat_row(body)],
    lambda model, rows: chat.reply(model, rows[0]),
    chat_head,
    chat_choices,
)
COMPLETION = Kind(
    COMPLETIONS,
    lambda body: completions.rows(completion_row(body)),
    completions.completion,
    completion_head,
    completion_choices,
)


def service_router(service: Service) -> Router:
    """Return the router of a served model. MLflow's own app answers what it does not have."""

    async def models(_: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [service.identity.as_object()]})

    async def model(request: HttpRequest) -> Response:
        if request.path_params["id"] in service.identity.ids:
            return JSONResponse(service.identity.as_object())
        message = f"this server has no model of that name; it has {', '.join(service.identity.ids)}"
        return error_response(RequestError("model_not_found", message, RESOURCE_DOES_NOT_EXIST))

    async def metrics(_: HttpRequest) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return Router(
        [
            Route("/v1/chat/completions", Completing(service, CHAT), methods=["POST"]),
            Route("/v1/completions", Completing(service, COMPLETION), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            Route("/metrics", metrics),
        ],
        redirect_slashes=False,
    )


def error_response(error: RequestError) -> Response:
    """Return an error in OpenAI's shape."""
    status = error.get_http_status_code()
    # OpenAI's client waits this long before it tries again.
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(error_object(error), status, headers)


class Completing:
    """The ASGI app of one of OpenAI's two routes."""

    def __init__(self, service: Service, kind: Kind) -> None:
        self._service, self._kind = service, kind
        self._contract = replace(service.contract, interface=kind.interface)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a failure is answered too."""
        try:
            body = await read_json(scope, receive)
            if body is None:
                return
            rows = await asyncio.to_thread(self._sequences, body)
            sequences = [sequence for choices in rows for sequence in choices]
            with submitted(self._service.scheduler, sequences) as awake:
                if wants_stream(body):
                    response: Response | None = event_response(self._events(awake, body, sequences))
                else:
                    work = complete(awake, sequences)
                    response = await unless_left(receive, work, lambda: JSONResponse(self._reply(rows)))
                if response is not None:
                    await response(scope, receive, send)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
        except Exception:
            logger.exception("A request failed")
            await error_response(engine_failed())(scope, receive, send)

    def _sequences(self, body: dict[str, Any]) -> list[list[Sequence]]:
        """Return the choices of every row of a body."""
        wants_usage(body)
        rows = self._kind.rows(body)
        check_size(rows)
        requests = self._contract.requests(rows, None)
        return [request.sequences(self._contract.tokenizer) for request in requests]

    def _reply(self, rows: list[list[Sequence]]) -> dict[str, Any]:
        identity = self._service.identity
        return self._kind.reply(identity.shown, rows) | {"system_fingerprint": identity.fingerprint}

    async def _events(
        self, awake: asyncio.Event, body: dict[str, Any], sequences: list[Sequence]
    ) -> AsyncIterator[str]:
        identity, with_usage = self._service.identity, wants_usage(body)
        head = self._kind.head(identity.shown) | {"system_fingerprint": identity.fingerprint}
        running = wants_running_usage(body)

        def wrap(entry: dict[str, Any]) -> dict[str, Any]:
            end = {"usage": usage(sequences) if running else None} if running or with_usage else {}
            return head | {"choices": [entry]} | end

        async for line in events(awake, sequences, self._kind.choices, wrap):
            yield line
        if with_usage and all(sequence.error is None for sequence in sequences):
            yield event(head | {"choices": [], "usage": usage(sequences)})
        yield DONE


async def read_json(scope: Scope, receive: Receive) -> dict[str, Any] | None:
    """Return the object in the body of a request, or None if its client leaves before the end."""
    body = await read_body(receive)
    if body is None:
        return None
    content_type = (header(scope, CONTENT_TYPE) or b"").decode("latin-1")
    return read_object(decoded(body, header(scope, CONTENT_ENCODING)), content_type)


def event_response(lines: AsyncIterator[str]) -> Response:
    """Return a stream of events. It ends when its client leaves."""
    return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def unless_left(receive: Receive, work: Awaitable[None], response: Callable[[], Response]) -> Response | None:
    """Return the response after the work is done, or None as soon as the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return None
        await working
        return response()
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestError):
                await task
