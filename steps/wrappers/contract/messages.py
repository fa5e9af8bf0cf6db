"""The messages of a conversation: check that the model's chat format can hold them."""

import json
from typing import Any

from ..tokenizer import ChatTokenizer
from ..tool_calls import Call, tool_call
from .errors import RequestError
from .fields import check_text, is_list, short, shown_name
from .neutral import asks_for_nothing

ROLES = ("system", "user", "assistant")
TOOL = "tool"
# By role: what a message may have in addition to its role and its content.
MORE: dict[str, tuple[str, ...]] = {"assistant": ("tool_calls",), TOOL: ("tool_call_id", "name")}


def check_messages(messages: Any, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Return the messages of a conversation, or raise RequestError if Phi-3's chat format cannot hold them."""
    if messages is None:
        raise RequestError("empty_conversation", "messages is missing; it must hold at least one message")
    if not is_list(messages):
        raise RequestError("not_messages", f"messages must be a list of messages, got {type(messages).__name__}")
    if len(messages) == 0:
        raise RequestError("empty_conversation", "messages must hold at least one message, got none")
    checked = [_check_message(f"messages[{index}]", message, tokenizer) for index, message in enumerate(messages)]
    last = checked[-1]["role"]
    if last not in ("user", TOOL):
        raise RequestError("last_role", f"the last message must have role 'user', got {last!r}")
    _check_results(checked)
    return checked


def _check_results(messages: list[dict[str, Any]]) -> None:
    """Raise RequestError unless each result of a tool belongs to a call before it."""
    calls: list[str] = []
    for index, message in enumerate(messages):
        calls += message.pop("call_ids", ())
        if message["role"] == TOOL and message["tool_call_id"] not in calls:
            problem = "must be the id of a call in an earlier message of the assistant"
            raise RequestError("invalid_tool_call_id", f"messages[{index}].tool_call_id {problem}")


def _check_message(field: str, message: Any, tokenizer: ChatTokenizer) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(
            "not_a_message", f"{field} must be an object with role and content, got {type(message).__name__}"
        )
    role, takes_tools = message.get("role"), tokenizer.call_syntax is not None
    roles = (*ROLES, TOOL) if takes_tools else ROLES
    if not isinstance(role, str) or role not in roles:
        raise RequestError("unknown_role", f"{field}.role must be one of {', '.join(roles)}, got {short(role)}")
    known = ("role", "content", *(MORE.get(role, ()) if takes_tools else ()))
    others = [key for key, value in message.items() if key not in known and not asks_for_nothing(value)]
    if others:
        raise RequestError("unsupported_field", f"{field}.{shown_name(others[0])} is not supported; leave it out")
    content = _content(field, role, message.get("content"), tokenizer)
    if role == TOOL:
        return {"role": role, "content": content, "tool_call_id": message.get("tool_call_id")}
    calls = message.get("tool_calls") if takes_tools and role == "assistant" else None
    checked = {"role": role, "content": content}
    return checked if asks_for_nothing(calls) else checked | _calls(f"{field}.tool_calls", content, calls, tokenizer)


def _content(field: str, role: str, content: Any, tokenizer: ChatTokenizer) -> str:
    """Return the text of a message. That of an assistant or a tool may be empty, and hold what the model can write."""
    by_assistant = role == "assistant"
    content = _joined_parts(field, content)
    # OpenAI's clients write null for a reply without text.
    text = "" if content is None and by_assistant else content
    text = check_text(f"{field}.content", text, by_assistant or (role == TOOL and text == ""))
    if token := tokenizer.control_token_in(text, by_assistant):
        raise RequestError("control_token", f"{field}.content must not contain the control token {token}")
    return text


def _calls(field: str, content: str, calls: Any, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return what calls add to a message: themselves if the template writes them, otherwise their text."""
    if not is_list(calls):
        raise RequestError("invalid_tool_calls", f"{field} must be a list of objects, got {type(calls).__name__}")
    read = [_call(f"{field}[{index}]", call, tokenizer) for index, call in enumerate(calls)]
    ids = [call_id for call_id, _ in read]
    syntax = tokenizer.call_syntax
    if syntax is None or not syntax.in_template:
        text = content + (syntax.write([call for _, call in read]) if syntax else "")
        return {"content": text, "call_ids": ids}
    entries = [tool_call(call.name, json.loads(call.arguments), call_id) for call_id, call in read]
    return {"tool_calls": entries, "call_ids": ids}


def _call(field: str, call: Any, tokenizer: ChatTokenizer) -> tuple[str, Call]:
    """Return the id of a call, and the call with its arguments as the model writes them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise RequestError("invalid_tool_calls", f"{field} must be an object with type 'function' and a function")
    texts = call.get("id"), function.get("name"), function.get("arguments")
    if not all(isinstance(text, str) for text in texts):
        problem = "must have an id, a function.name and function.arguments, all of them strings"
        raise RequestError("invalid_tool_calls", f"{field} {problem}")
    call_id, name, arguments = (check_text(field, text) for text in texts)
    try:
        content = json.loads(arguments)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RequestError("invalid_tool_calls", f"{field}.function.arguments must be a JSON object, as a string")
    written = json.dumps(content, ensure_ascii=False)
    if token := tokenizer.control_token_in(name + written):
        raise RequestError("control_token", f"{field} must not contain the control token {token}")
    return call_id, Call(name, written)


def _joined_parts(field: str, content: Any) -> Any:
    """Return a content in OpenAI's parts as one text if all of them are text; any other content as it is."""
    if not is_list(content) or len(content) == 0:
        return content
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError("not_text", f"{field}.content[{index}] must be a part of type 'text' with a string")
        if others := [key for key in part if key not in ("type", "text") and not asks_for_nothing(part[key])]:
            name = shown_name(others[0])
            raise RequestError("unsupported_field", f"{field}.content[{index}].{name} is not supported; leave it out")
    return "".join(part["text"] for part in content)
