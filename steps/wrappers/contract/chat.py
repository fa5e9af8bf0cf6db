"""The `chat` interface: conversations in, replies in MLflow's chat schema out, streams in OpenAI's chunks."""

import time
import uuid
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..engines.sampling import TokenScore
from ..engines.sequence import Sequence
from ..tokenizer import ChatTokenizer
from ..tool_calls import Call, new_pieces
from .fields import CHOICE_FIELDS, LOGPROB_FIELDS, is_list, shown_logprob
from .messages import check_messages
from .rendering import encode_conversation
from .usage import usage

SUBJECT = "messages"
OFFERED: tuple[str, ...] = (*CHOICE_FIELDS, *LOGPROB_FIELDS)
TAKES_TOOLS = True


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
    """Check the conversation of a row and return its token ids, up to where the assistant's turn begins.

    Its `tools` are checked already (tools.py).
    """
    return encode_conversation(check_messages(row.get(SUBJECT), tokenizer), tokenizer, row.get("tools"))


def reply(model: str, choices: list[Sequence]) -> dict[str, Any]:
    """Return the reply to one conversation, with exact token counts."""
    finished = [(message(choice), finish_reason(choice)) for choice in choices]
    content = _completion(model, finished, choices)
    for entry, choice in zip(content["choices"], choices, strict=True):
        if choice.settings.logprobs is not None:
            entry["logprobs"] = {"content": logprobs(choice.tokenizer, choice.scores)}
    return content


def message(sequence: Sequence) -> dict[str, Any]:
    """Return the message of a finished choice: its text, or the calls that it is."""
    text, calls = parts(sequence, sequence.text, ended=True)
    if not calls:
        return {"role": "assistant", "content": text}
    entries = [_shown_call(call.name, call.arguments) for call in calls]
    return {"role": "assistant", "content": None, "tool_calls": entries}


def _shown_call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def finish_reason(sequence: Sequence) -> str | None:
    """Return why a choice ended: `tool_calls` if it is whole calls of tools."""
    syntax = sequence.settings.calls
    if syntax is None or not sequence.is_call:
        return sequence.finish_reason
    calls, complete = syntax.read(sequence.text)
    return "tool_calls" if calls and complete else sequence.finish_reason


def parts(sequence: Sequence, text: str, ended: bool) -> tuple[str, list[Call]]:
    """Return the content and the calls in the text of a choice so far. What may become a call is neither yet."""
    syntax, is_call = sequence.settings.calls, sequence.is_call
    if syntax is None or is_call is False:
        return text, []
    if is_call:
        return "", syntax.read(text)[0]
    return (text, []) if ended else ("", [])


class Deltas:
    """What a stream has sent of one choice, and what it sends next."""

    def __init__(self, sequence: Sequence) -> None:
        self._sequence, self._sent = sequence, 0
        self._calls: list[Call] = []

    def next(self, text: str, ended: bool) -> Iterator[dict[str, Any]]:
        """Yield the deltas for all of the choice's text so far."""
        content, calls = parts(self._sequence, text, ended)
        if len(content) > self._sent:
            yield {"content": content[self._sent :]}
            self._sent = len(content)
        for index, name, arguments in new_pieces(self._calls, calls):
            new = {"function": {"arguments": arguments}} if name is None else _shown_call(name, arguments)
            yield {"tool_calls": [{"index": index} | new]}
        self._calls = calls


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
    return _completion(model, [({"role": "assistant", "content": error}, "error")], [])


def _completion(
    model: str, choices: list[tuple[dict[str, Any], str | None]], sequences: list[Sequence]
) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": index, "message": content, "finish_reason": reason}
            for index, (content, reason) in enumerate(choices)
        ],
        "usage": usage(sequences),
    }


def stream(model: str, sequence: Sequence, pieces: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield OpenAI's chunks: one with the role, one for each piece of text, one with the finish reason."""
    completion_id, scored, text, deltas = f"chatcmpl-{uuid.uuid4().hex}", 0, "", Deltas(sequence)
    try:
        yield _chunk(completion_id, model, {"role": "assistant", "content": ""}, None)
        for piece in chain(pieces, [""]):  # the last tokens may have no text, but log-probabilities
            text, scores = text + piece, sequence.scores[scored:]
            scored += len(scores)
            for entry in delta_choices(sequence, deltas, text, scores, ended=not piece):
                yield _chunk(completion_id, model, **entry)
        yield _chunk(completion_id, model, {}, finish_reason(sequence))
    finally:
        # A reader may close the stream after its first chunk. Then `pieces` has not started and cannot cancel.
        sequence.cancel()


def delta_choices(
    sequence: Sequence, deltas: Deltas, text: str, scores: list[TokenScore], ended: bool
) -> Iterator[dict[str, Any]]:
    """Yield the deltas of a choice as parts of chunks, the first one with the new log-probabilities if any."""
    shown = logprobs(sequence.tokenizer, scores)
    new = list(deltas.next(text, ended))
    for number, delta in enumerate(new or ([{"content": ""}] if shown else [])):
        entry: dict[str, Any] = {"delta": delta, "finish_reason": None}
        if sequence.settings.logprobs is not None:
            entry["logprobs"] = {"content": [] if number else shown}
        yield entry


def _chunk(
    completion_id: str, model: str, delta: dict[str, Any], finish_reason: str | None, **more: Any
) -> dict[str, Any]:
    return {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **more}],
    }
