"""Streams as server-sent events: OpenAI's chunks for chat and for completions, and the pieces of a prompt model."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..contract import chat, completions
from ..contract.errors import RequestError
from ..contract.openai import error_object
from ..engines.sampling import TokenScore
from ..engines.sequence import Sequence
from .completing import advances

# The head of all chunks of a stream (its id and so on), and the choices of one chunk.
Head = dict[str, Any]


@dataclass(frozen=True)
class Growth:
    """What has come of one sequence since its last chunk.

    Attributes:
        index: Its number among the choices.
        sequence: The sequence.
        whole: All of its text so far.
        text: The part of `whole` that has not been sent.
        scores: The new log-probabilities.
        first: Whether nothing was sent before.
        last: Whether nothing follows.
        deltas: What a chat's stream has sent of it.
    """

    index: int
    sequence: Sequence
    whole: str
    text: str
    scores: list[TokenScore]
    first: bool
    last: bool
    deltas: chat.Deltas


# Makes the choices of the chunks for the growth of a sequence.
Choices = Callable[[Growth], Iterator[Any]]

DONE = "data: [DONE]\n\n"


def event(content: Any) -> str:
    """Return one event. JSON has no line break, so it is one line of data."""
    return f"data: {json.dumps(content)}\n\n"


def chat_head(model: str) -> Head:
    """Return what every chunk of a chat stream begins with."""
    return _head(f"chatcmpl-{uuid.uuid4().hex}", "chat.completion.chunk", model)


def completion_head(model: str) -> Head:
    """Return what every chunk of a stream of completions begins with."""
    return _head(f"cmpl-{uuid.uuid4().hex}", "text_completion", model)


def _head(stream_id: str, kind: str, model: str) -> Head:
    return {"id": stream_id, "object": kind, "created": int(time.time()), "model": model}


def chat_choices(growth: Growth) -> Iterator[dict[str, Any]]:
    """Yield the choices of a chat's chunks: first the role, then pieces of text, at the end the reason."""
    index, sequence = growth.index, growth.sequence
    if growth.first:
        yield {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for entry in chat.delta_choices(sequence, growth.deltas, growth.whole, growth.scores, growth.last):
        yield {"index": index} | entry
    if growth.last:
        yield {"index": index, "delta": {}, "finish_reason": chat.finish_reason(sequence)}


def completion_choices(growth: Growth) -> Iterator[dict[str, Any]]:
    """Yield the choices of the chunks of completions; the first one echoes the prompt if that was asked for."""
    sequence = growth.sequence
    text = (completions.echoed(sequence) if growth.first else "") + growth.text
    if text or growth.scores or growth.last:
        yield {
            "index": growth.index,
            "text": text,
            "logprobs": completions.logprobs(sequence, growth.scores, with_prompt=growth.first),
            "finish_reason": sequence.finish_reason if growth.last else None,
        }


def prompt_choices(growth: Growth) -> Iterator[str]:
    """Yield the pieces of a prompt model's text as they are."""
    if growth.text:
        yield growth.text


async def events(
    awake: asyncio.Event, sequences: list[Sequence], choices: Choices, wrap: Callable[[Any], Any]
) -> AsyncIterator[str]:
    """Yield the events of the sequences as they grow; an error is the last event.

    Args:
        awake: The event of their progress.
        sequences: The choices of the request.
        choices: Makes the choices of chunks.
        wrap: Makes a chunk of one choice.
    """
    sent, scored, open_ones = [0] * len(sequences), [0] * len(sequences), set(range(len(sequences)))
    begun, deltas = set[int](), [chat.Deltas(sequence) for sequence in sequences]
    try:
        async for _ in advances(awake, sequences):
            for index in sorted(open_ones):
                sequence = sequences[index]
                # Read in this order: a sequence that is done has its whole text.
                last, scores, text = sequence.done.is_set(), sequence.scores[scored[index] :], sequence.settled_text()
                new = text[sent[index] :]
                growth = Growth(index, sequence, text, new, scores, index not in begun, last, deltas[index])
                for choice in choices(growth):
                    begun.add(index)
                    yield event(wrap(choice))
                sent[index], scored[index] = len(text), scored[index] + len(scores)
                open_ones -= {index} if last else set()
    except RequestError as error:
        yield event(error_object(error))
