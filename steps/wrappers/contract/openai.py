"""OpenAI's API in the contract's words: bodies become rows, and refusals become OpenAI's error objects."""

import re
from typing import Any

from .errors import RequestError
from .fields import is_list, is_number, short

# Fields of OpenAI's API that change no answer, or that the route itself answers.
ROUTE_FIELDS = ("stream", "stream_options", "metadata")
STREAM_OPTIONS = ("include_usage", "include_obfuscation", "continuous_usage_stats")
PARAM = re.compile(r"(?:row \d+: )?([a-z_]+(?:\[\d+\]|\.[a-z_0-9]+)*) (?:must|is|may|needs|and)\b")


def chat_row(body: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a body for chat completions."""
    row = {name: value for name, value in body.items() if name not in ROUTE_FIELDS}
    messages: Any = row.get("messages")
    if is_list(messages):
        row["messages"] = [_plain_message(index, message) for index, message in enumerate(messages)]
    return row


def completion_row(body: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a body for completions, where `logprobs` is the number of alternatives."""
    row = {name: value for name, value in body.items() if name not in ROUTE_FIELDS}
    count = row.pop("logprobs", None)
    if count is not None and count is not False:
        if not is_number(count) or count != count or not 0 <= count <= 20:
            message = f"logprobs must be a whole number, at least 0 and at most 20, got {short(count)}"
            raise RequestError("invalid_logprobs", message)
        row |= {"logprobs": True, "top_logprobs": count}
    return row


def wants_stream(body: dict[str, Any]) -> bool:
    """Return True if a body asks for a stream."""
    value = body.get("stream")
    if value is None or isinstance(value, bool):
        return bool(value)
    raise RequestError("stream", f"stream must be true or false, got {short(value)}")


def wants_usage(body: dict[str, Any]) -> bool:
    """Return True if a body asks for the token counts at the end of its stream."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not all(isinstance(value, bool | None) for value in options.values()):
        raise RequestError("stream_options", "stream_options must be an object of true or false values")
    if unknown := [name for name in options if name not in STREAM_OPTIONS]:
        message = f"stream_options.{unknown[0][:40]} is not a known field; known fields: {', '.join(STREAM_OPTIONS)}"
        raise RequestError("unsupported_field", message)
    if not wants_stream(body):
        raise RequestError("stream_options", "stream_options needs stream: true")
    return bool(options.get("include_usage"))


def wants_running_usage(body: dict[str, Any]) -> bool:
    """Return True if each chunk of a stream is to have the token counts so far: load tools ask other servers so."""
    return bool((body.get("stream_options") or {}).get("continuous_usage_stats"))


def error_object(error: RequestError) -> dict[str, Any]:
    """Return OpenAI's error object for a refusal or a failure."""
    status = error.get_http_status_code()
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    message = error.message.removeprefix(f"[{error.code}] ")
    param = PARAM.match(message)
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param[1] if param and status == 400 else None,
            "code": error.code,
        }
    }


def _plain_message(index: int, message: Any) -> Any:
    """Return a message with one text as its content, and with the role that `developer` means."""
    if not isinstance(message, dict):
        return message
    if message.get("role") == "developer":
        message = message | {"role": "system"}
    content = message.get("content")
    if not is_list(content):
        return message
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            field = f"messages[{index}].content[{number}]"
            raise RequestError("unsupported_content", f"{field} must be a text part; this model reads text only")
        texts.append(part["text"])
    return message | {"content": "".join(texts)}
