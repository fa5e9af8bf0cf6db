"""How a model writes calls of tools: the chat template shows it, or else they are written as Phi-4-mini does.

A text of calls is `begin`, a name, `middle`, the arguments as a JSON object, and at last `end`; between two calls
stands `separator`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Marks that stand for the text around a call and for its parts. No filter of a template changes them.
USER, REPLY, NEXT, NAME, VALUE = (f"a73160842{number}" for number in range(5))
ARGUMENTS = {"a": VALUE}
DECODER = json.JSONDecoder()

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """A call of a tool. While it is written, its arguments are the beginning of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallSyntax:
    """The texts around the calls of one reply.

    Attributes:
        begin: Before the first name.
        middle: Between a name and its arguments.
        separator: After arguments, before the next name; None if a reply has one call only.
        end: After the last arguments.
        in_template: Whether the template writes the calls of a message. If not, they are part of its text.
    """

    begin: str
    middle: str
    separator: str | None
    end: str
    in_template: bool = False

    def write(self, calls: list[Call]) -> str:
        """Return calls as the model writes them."""
        written = [call.name + self.middle + call.arguments for call in calls]
        return self.begin + (self.separator or "").join(written) + self.end if calls else ""

    def read(self, text: str) -> tuple[list[Call], bool]:
        """Return the calls in a text of calls so far, and whether it is complete; a name has to be whole."""
        calls: list[Call] = []
        rest = text.lstrip().removeprefix(self.begin)
        while True:
            name, middle, rest = rest.partition(self.middle)
            if not middle:
                return calls, False
            try:
                _, end = DECODER.raw_decode(rest)
            except ValueError:
                return [*calls, Call(name, rest)], False
            calls.append(Call(name, rest[:end]))
            rest = rest[end:]
            if self.separator is None or not rest.startswith(self.separator):
                return calls, rest.startswith(self.end)
            rest = rest[len(self.separator) :]

    def without(self, tokens: list[str]) -> "CallSyntax":
        """Return the syntax of a decoded text, which leaves some tokens out."""
        parts: list[str | None] = [self.begin, self.middle, self.separator, self.end]
        for token in tokens:
            parts = [part and part.replace(token, "") for part in parts]
        begin, middle, separator, end = parts
        return CallSyntax((begin or "").lstrip(), middle or "", separator, end or "", self.in_template)


PHI4_MINI = CallSyntax('<|tool_call|>[{"name": "', '", "arguments": ', '}, {"name": "', "}]<|/tool_call|>")


def tool_call(name: str, arguments: Any, call_id: str) -> dict[str, Any]:
    """Return a call as templates read it: most look for a function in it, some for its name at once."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function, **function}


def shown_syntax(render: Callable[[Messages], str]) -> CallSyntax | None:
    """Return how a template writes calls; None if it writes none, or in a way that is not known here.

    `render` may raise any error for a conversation.
    """
    text = render(_conversation({"content": REPLY}))
    head, _, rest = text.partition(REPLY)
    tail = rest.partition(NEXT)[0]
    header = head.partition(USER)[2]
    one, two = (_between(_rendered(render, count), header, tail) for count in (1, 2))
    begin, name, rest = one.partition(NAME)
    middle, arguments, end = rest.partition(json.dumps(ARGUMENTS))
    if not name or not arguments or "73160842" in begin + end:
        return None
    call = NAME + middle + json.dumps(ARGUMENTS)
    separator = two.removeprefix(begin + call).removesuffix(call + end)
    has_two = two == begin + call + separator + call + end
    return CallSyntax(begin.lstrip(), middle, separator if has_two else None, end, in_template=True)


def _rendered(render: Callable[[Messages], str], count: int) -> str:
    calls = [tool_call(NAME, ARGUMENTS, "c73160842") for _ in range(count)]
    try:
        return render(_conversation({"content": "", "tool_calls": calls}))
    except Exception:  # a template can raise anything that Python can
        return ""


def _conversation(reply: dict[str, Any]) -> Messages:
    user, following = ({"role": "user", "content": text} for text in (USER, NEXT))
    return [user, {"role": "assistant"} | reply, following]


def _between(text: str, header: str, ending: str) -> str:
    """Return what a template writes as the assistant's turn, between the texts before and after any of them."""
    turn = text.partition(USER)[2].partition(NEXT)[0]
    fits = turn.startswith(header) and turn.endswith(ending) and len(turn) >= len(header) + len(ending)
    return turn[len(header) : len(turn) - len(ending)] if fits else ""


def new_pieces(before: list[Call], now: list[Call]) -> Iterator[tuple[int, str | None, str]]:
    """Yield what calls have grown by: the number of the call, its name if the call is new, its new arguments."""
    for index, call in enumerate(now):
        old = before[index] if index < len(before) else None
        arguments = call.arguments[len(old.arguments) if old else 0 :]
        if old is None or arguments:
            yield index, None if old else call.name, arguments
