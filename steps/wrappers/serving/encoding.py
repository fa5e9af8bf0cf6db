"""The content encoding of a request: gzip is decoded, up to the limit of a body; any other is refused by name."""

import gzip
import io
import zlib

from ..contract.errors import RequestError
from ..contract.size import MAX_BYTES

CONTENT_ENCODING = b"content-encoding"
GZIP_MAGIC = b"\x1f\x8b"


def decoded(body: bytes, encoding: bytes | None) -> bytes:
    """Return the body without its content encoding."""
    names = [name.strip() for name in (encoding or b"").decode("latin-1").lower().split(",")]
    name = ", ".join(name for name in names if name not in ("", "identity"))
    if name in ("gzip", "x-gzip"):
        return _unzipped(body)
    if name:
        message = f"the content encoding must be gzip or none, got {name[:40]!r}"
        raise RequestError("content_encoding", message, status=415)
    if body.startswith(GZIP_MAGIC):
        message = "the body is compressed with gzip; send the header content-encoding: gzip"
        raise RequestError("content_encoding", message, status=415)
    return body


def _unzipped(body: bytes) -> bytes:
    """Return the content of a gzip body. No more than the limit is ever in memory."""
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(body)).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise RequestError("invalid_gzip", "the body is not a complete gzip file") from None
    if len(content) > MAX_BYTES:
        message = f"a body may have at most {MAX_BYTES} bytes when it is decoded, got more"
        raise RequestError("too_large", message)
    return content
