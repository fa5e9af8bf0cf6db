"""The HTTP methods that MLflow's server does not have: HEAD, and OPTIONS with the preflight of a web page.

A page may read replies if its origin is in MLFLOW_SERVER_CORS_ALLOWED_ORIGINS (as for MLflow's tracking server; * is
any origin). Those of MLflow's own routes are also for pages of this machine. The browser refuses every other page.
"""

import re
from collections.abc import Iterable

from mlflow.environment_variables import MLFLOW_SERVER_CORS_ALLOWED_ORIGINS

from .messages import Message, Scope, Send

READ, WRITE = ("GET", "HEAD", "OPTIONS"), ("POST", "OPTIONS")
OWN_METHODS = {"/v1/chat/completions": WRITE, "/v1/completions": WRITE, "/v1/models": READ, "/metrics": READ}
# MLflow's routes, which pages of this machine may use.
MLFLOW_METHODS = {"/ping": READ, "/health": READ, "/version": READ, "/invocations": WRITE}
METHODS = MLFLOW_METHODS | OWN_METHODS
LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")

# Behind it follows the name of a model, which may have slashes.
MODEL_PATH = "/v1/models/"

Header = tuple[bytes, bytes]


def without_slash(path: str) -> str:
    """Return a path without the slash at its end, if it is then a route of this server.

    MLflow's server would answer with a redirect, which neither a preflight nor most clients follow.
    """
    shorter = path.rstrip("/")
    return shorter if shorter in METHODS else path


def methods_of(path: str) -> tuple[str, ...]:
    """Return the methods of a path; none if this server leaves it to MLflow's."""
    return READ if path.startswith(MODEL_PATH) else METHODS.get(path, ())


async def send_methods(scope: Scope, send: Send) -> None:
    """Answer OPTIONS: the methods of the path, and for a page that may use them, the headers that it asks for."""
    methods = ", ".join(methods_of(scope["path"])).encode()
    headers: list[Header] = [(b"allow", methods)]
    requested = header(scope, b"access-control-request-headers")
    if _allowed_origin(scope) and header(scope, b"access-control-request-method"):
        headers += [(b"access-control-allow-methods", methods), (b"access-control-max-age", b"600")]
        headers += [(b"access-control-allow-headers", requested)] if requested else []
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def as_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Return a HEAD request as one for GET, whose reply is sent without its body."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return scope | {"method": "GET"}, send_head


def readable_by_page(scope: Scope, send: Send) -> Send:
    """Return ASGI's `send` that lets the page that sent a request read the reply, if its origin is allowed."""
    origin = header(scope, b"origin")
    if origin is None:
        return send
    allowed = [(b"access-control-allow-origin", origin)] if _allowed_origin(scope) else []

    async def send_readable(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *allowed, (b"vary", b"origin")]}
        await send(message)

    return send_readable


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of a header of a request, or None."""
    headers: Iterable[Header] = scope.get("headers", ())
    return next((value for header_name, value in headers if header_name == name), None)


def _allowed_origin(scope: Scope) -> bool:
    origin = (header(scope, b"origin") or b"").decode("latin-1")
    configured = (MLFLOW_SERVER_CORS_ALLOWED_ORIGINS.get() or "").split(",")  # type: ignore[no-untyped-call]
    origins = [entry.strip() for entry in configured]
    is_local = scope.get("path") in MLFLOW_METHODS and LOCAL_ORIGIN.fullmatch(origin) is not None
    return bool(origin) and ("*" in origins or origin in origins or is_local)
