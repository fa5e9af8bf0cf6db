"""The `chat` interface: conversations in, replies in MLflow's chat schema out, streams in OpenAI's chunks."""

import time
import uuid
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..engines.sampling import TokenScore
from ..engines.sequence import Sequence
from ..tokenizer import ChatTokenizer
from .errors import RequestError
from .fields import CHOICE_FIELDS, LOGPROB_FIELDS, check_text, is_list, short, shown_logprob, shown_name
from .neutral import asks_for_nothing
from .rendering import encode_conversation

SUBJECT = "messages"
ROLES = ("system", "user", "assistant")
OFFERED: tuple[str, ...] = (*CHOICE_FIELDS, *LOGPROB_FIELDS)


def rows(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a request that came as one object: one for each conversation, if it holds a list of them."""
    conversations: Any = request.get(SUBJECT)
    if is_list(conversations) and len(conversations) and all(map(is_list, conversations)):
        return [request | {SUBJECT: messages} for messages in conversations]
    return [request]


def row(subject: Any) -> dict[str, Any]:
    """Return the row of a conversation that came alone; a text is the one message of a user."""
    return {SUBJECT: [{"role": "user", "content": subject}] if isinstance(subject, str) else subject}


def encode(row: dict[str, Any], tokenizer: ChatTokenizer) -> list[int]:
    """Check the conversation of a row and return its token ids, up to where the assistant's turn begins."""
    return encode_conversation(check_messages(row.get(SUBJECT), tokenizer), tokenizer)


def reply(model: str, choices: list[Sequence]) -> dict[str, Any]:
    """Return the reply to one conversation, with exact token counts."""
    finished = [(choice.text, choice.finish_reason) for choice in choices]
    content = _completion(model, finished, len(choices[0].prompt), sum(len(choice.tokens) for choice in choices))
    for entry, choice in zip(content["choices"], choices, strict=True):
        if choice.settings.logprobs is not None:
            entry["logprobs"] = {"content": logprobs(choice.tokenizer, choice.scores)}
    return content


def logprobs(tokenizer: ChatTokenizer, scores: list[TokenScore]) -> list[dict[str, Any]]:
    """Return OpenAI's log-probabilities of tokens, without the token that ended the reply."""
    scores = [score for score in scores if score.token not in tokenizer.end_tokens]
    return [
        _shown_token(tokenizer, score.token, score.logprob)
        | {"top_logprobs": [_shown_token(tokenizer, *alternative) for alternative in score.best]}
        for score in scores
    ]


def _shown_token(tokenizer: ChatTokenizer, token: int, logprob: float) -> dict[str, Any]:
    content = tokenizer.token_bytes(token)
    text = content.decode("utf-8", "replace")
    return {"token": text, "logprob": shown_logprob(logprob), "bytes": list(content)}


def error_reply(model: str, error: str) -> dict[str, Any]:
    """Return a reply with the finish reason "error" and the error as its text."""
    return _completion(model, [(error, "error")], 0, 0)


def _completion(
    model: str, choices: list[tuple[str, str | None]], prompt_tokens: int, completion_tokens: int
) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
            for index, (text, finish_reason) in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def stream(model: str, sequence: Sequence, pieces: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield OpenAI's chunks: one with the role, one for each piece of text, one with the finish reason."""
    completion_id, scored = f"chatcmpl-{uuid.uuid4().hex}", 0
    try:
        yield _chunk(completion_id, model, {"role": "assistant", "content": ""}, None)
        for piece in chain(pieces, [""]):  # the last tokens may have no text, but log-probabilities
            chunk, scores = _chunk(completion_id, model, {"content": piece}, None), sequence.scores[scored:]
            scored += len(scores)
            shown = logprobs(sequence.tokenizer, scores)
            if sequence.settings.logprobs is not None:
                chunk["choices"][0]["logprobs"] = {"content": shown}
            if piece or shown:
                yield chunk
        yield _chunk(completion_id, model, {}, sequence.finish_reason)
    finally:
        # A reader may close the stream after its first chunk. Then `pieces` has not started and cannot cancel.
        sequence.cancel()


def _chunk(completion_id: str, model: str, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def check_messages(messages: Any, tokenizer: ChatTokenizer) -> list[dict[str, str]]:
    """Return the messages of a conversation, or raise RequestError if Phi-3's chat format cannot hold them."""
    if messages is None:
        raise RequestError("empty_conversation", "messages is missing; it must hold at least one message")
    if not is_list(messages):
        raise RequestError("not_messages", f"messages must be a list of messages, got {type(messages).__name__}")
    if len(messages) == 0:
        raise RequestError("empty_conversation", "messages must hold at least one message, got none")
    checked = [_check_message(f"messages[{index}]", message, tokenizer) for index, message in enumerate(messages)]
    if checked[-1]["role"] != "user":
        raise RequestError("last_role", f"the last message must have role 'user', got {checked[-1]['role']!r}")
    return checked


def _check_message(field: str, message: Any, tokenizer: ChatTokenizer) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RequestError(
            "not_a_message", f"{field} must be an object with role and content, got {type(message).__name__}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError("unknown_role", f"{field}.role must be one of {', '.join(ROLES)}, got {short(role)}")
    others = [key for key, value in message.items() if key not in ("role", "content") and not asks_for_nothing(value)]
    if others:
        raise RequestError("unsupported_field", f"{field}.{shown_name(others[0])} is not supported; leave it out")
    by_assistant = role == "assistant"
    content = _joined_parts(field, message.get("content"))
    # OpenAI's clients write null for a reply without text.
    content = check_text(f"{field}.content", "" if content is None and by_assistant else content, by_assistant)
    if token := tokenizer.control_token_in(content, by_assistant):
        raise RequestError("control_token", f"{field}.content must not contain the control token {token}")
    return {"role": role, "content": content}


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
