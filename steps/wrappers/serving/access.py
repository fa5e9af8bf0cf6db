"""Access to a served model: if an API key is set, a request needs it.

PHI3_API_KEY holds the key, or PHI3_API_KEY_FILE names a file with one key a line. /ping and /health stay open.
"""

import hmac
import os
from collections.abc import Callable
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

from ..contract.errors import RequestError

KEY, KEY_FILE = "PHI3_API_KEY", "PHI3_API_KEY_FILE"
OPEN_PATHS = ("/ping", "/health")

Check = Callable[[str, bytes | None], None]


def key_check() -> Check:
    """Return a function that raises RequestError unless a path is open or its `authorization` header has a key."""
    keys = [key.encode() for key in _keys()]

    def check(path: str, authorization: bytes | None) -> None:
        if not keys or path in OPEN_PATHS:
            return
        scheme, _, sent = (authorization or b"").partition(b" ")
        # Every key is compared, so that the time does not show which one is near.
        matches = [hmac.compare_digest(sent.strip(), key) for key in keys]
        if scheme.lower() != b"bearer" or not any(matches):
            message = "this server needs an API key; send the header authorization: Bearer KEY with a valid one"
            raise RequestError("invalid_api_key", message, UNAUTHENTICATED, status=401)

    return check


def _keys() -> list[str]:
    """Return the keys that are valid; raise MlflowException if the settings hold none."""
    key, file = os.environ.get(KEY), os.environ.get(KEY_FILE)
    if key is None and not file:
        return []
    keys = [key.strip()] if key is not None else []
    try:
        keys += Path(file).read_text(encoding="utf-8").split() if file else []
    except (OSError, ValueError) as error:
        raise MlflowException(f"{KEY_FILE} names a file that cannot be read ({type(error).__name__})") from None
    if not any(keys):
        # Without a key, everyone could use a server that was meant to be closed.
        raise MlflowException(f"{KEY if key is not None else KEY_FILE} is set but holds no key; set one, or unset it")
    return [key for key in keys if key]
