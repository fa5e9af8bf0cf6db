"""The chat template of a checkpoint, rendered to the letter as transformers' `apply_chat_template` does.

Reads chat_template.jinja, additional_chat_templates/*.jinja or tokenizer_config.json. The template language is that of
transformers (utils/chat_template_utils.py): jinja2's immutable sandbox with loop controls, the `generation` tag, a
`tojson` that does not escape HTML, `raise_exception` and `strftime_now`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .tool_calls import PHI4_MINI, CallSyntax, shown_syntax

# Stands for the content of a message. Digits only, so that no filter of a template changes it.
MARK = "7316084259"
MARKS = re.compile(rf"{MARK}(\d{{8}})")
# The most characters of a template's own message that are shown.
SHOWN_CHARACTERS = 300
# What a system message says that was added to hold the tools.
SYSTEM = "You are a helpful assistant with some tools."

Tools = Sequence[Mapping[str, Any]]


class TemplateRefusal(ValueError):
    """A conversation that the chat template does not render. The message is the template's, without any content."""


class ChatTemplate:
    """Render conversations up to where the assistant's next turn begins."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile the template; raise ValueError if it is not in the template language.

        Args:
            source: The text of the template.
            special_tokens: Named tokens such as bos_token, which the template may use.
        """
        self.source, self._special_tokens = source, special_tokens
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template cannot be read: {error.message} (line {error.lineno})") from None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> str:
        """Return a conversation as text, with the tools that its replies may call; raise TemplateRefusal."""
        try:
            if tools and self._tools_in_message:
                return self._render(_with_tools(messages, tools))
            return self._render(messages, tools)
        except Exception as error:  # a template can raise anything that Python can
            raise TemplateRefusal(self._reason(messages, error)) from None

    @cached_property
    def call_syntax(self) -> CallSyntax | None:
        """Return how replies call tools; None if the template takes no tools, or writes calls in an unknown way."""
        if not self._tools_in_message and not self._shows_tools(lambda tools: self._render(_marked(["user"]), tools)):
            return None
        try:
            syntax = shown_syntax(self._render)
        except Exception:  # a template can raise anything that Python can
            return None
        return syntax or (PHI4_MINI if self._tools_in_message else None)

    @cached_property
    def _tools_in_message(self) -> bool:
        """Return True if the template reads tools as a text in the system message, as Phi-4-mini's does."""
        return self._shows_tools(lambda tools: self._render(_with_tools(_marked(["user"]), tools)))

    def _shows_tools(self, render: Callable[[Tools], str]) -> bool:
        function = {"name": f"tool_{MARK}", "description": "a", "parameters": {"type": "object", "properties": {}}}
        try:
            return MARK + '"' in render([{"type": "function", "function": function}])
        except Exception:  # a template can raise anything that Python can
            return False

    def unrendered(self, roles: Sequence[str]) -> int | None:
        """Return the index of the first message that the template leaves out, or None.

        A template decides by role and place, so the messages hold marks. If it refuses marks, the answer is None.
        """
        try:
            text = self._render(_marked(roles))
        except Exception:
            return None
        rendered = {int(index) for index in MARKS.findall(text)}
        return next((index for index in range(len(roles)) if index not in rendered), None)

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Tools | None = None) -> str:
        text: str = self._template.render(
            messages=messages, tools=tools, documents=None, add_generation_prompt=True, **self._special_tokens
        )
        return text

    def _reason(self, messages: Sequence[Mapping[str, Any]], error: Exception) -> str:
        """Return the message of an error without the content of any message."""
        contents = [message["content"] for message in messages]
        try:
            self._render(_marked([message["role"] for message in messages]))
        except Exception as anonymous:  # usually the same error, but with marks instead of contents
            error, contents = anonymous, []
        if not isinstance(error, TemplateError):
            return f"it raises {type(error).__name__}"
        text = MARKS.sub("…", str(error))
        for content in filter(None, contents):
            text = text.replace(content, "…")
        return text[:SHOWN_CHARACTERS]


def template_source(directory: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Return the text of the chat template in a folder; raise ValueError if it has none, or none for a chat.

    Files come before tokenizer_config.json. Of several templates the one named `default` is for conversations without
    tools.
    """
    files = {file.stem: file for file in directory.glob("additional_chat_templates/*.jinja")}
    main = directory / "chat_template.jinja"
    templates: Any = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    if main.is_file():
        templates = {"default": main.read_text(encoding="utf-8")} | templates
    templates = templates or tokenizer_config.get("chat_template")
    if isinstance(templates, list):
        if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in templates):
            raise ValueError("each of its chat templates must be an object with name and template")
        templates = {entry["name"]: entry["template"] for entry in templates}
    if isinstance(templates, dict):
        if "default" not in templates:
            raise ValueError(f"it has chat templates named {', '.join(sorted(templates))}, but none named default")
        templates = templates["default"]
    if not isinstance(templates, str):
        raise ValueError("it has no chat template (chat_template.jinja, or in tokenizer_config.json)")
    return templates


def _with_tools(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[Mapping[str, Any]]:
    """Return a conversation whose system message holds the functions of tools as JSON."""
    system: Mapping[str, Any] = {"role": "system", "content": SYSTEM}
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0], messages[1:]
    return [{**system, "tools": json.dumps([tool["function"] for tool in tools], ensure_ascii=False)}, *messages]


def _marked(roles: Sequence[str]) -> list[dict[str, str]]:
    """Return a conversation in which each content is a mark with the index of its message."""
    return [{"role": role, "content": f"{MARK}{index:08d}"} for index, role in enumerate(roles)]


class _Generation(Extension):
    """The tag {% generation %} … {% endgeneration %} around what the assistant writes.

    transformers can note where it is. It renders the body in a scope of its own, which a call block does too.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        """Return the body of the tag as a call block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


# The names of the arguments are those that templates use.
def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
