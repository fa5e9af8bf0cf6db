"""Prompting: the system prompt and the examples that a variant puts before every conversation.

It is written into the checkpoint's chat template, so every mode that renders a conversation with this tokenizer
applies it.
"""

import json
from pathlib import Path

from steps.config.schema import Prompting
from steps.errors import StepError
from steps.wrappers.tokenizer import ChatTokenizer

# The system prompt applies unless the conversation has one of its own.
PRESET = """\
{%%- set given = messages -%%}
{%%- if given and given[0]['role'] == 'system' -%%}
{%%- set opening = [given[0]] -%%}{%%- set given = given[1:] -%%}
{%%- else -%%}
{%%- set opening = %s -%%}
{%%- endif -%%}
{%%- set messages = opening + %s + given -%%}
"""
# No template and no tokenizer changes this text.
MARK = "\x1aprompt\x1a"


def system_messages(prompting: Prompting) -> list[dict[str, str]]:
    """Return the system message, or nothing."""
    return [{"role": "system", "content": prompting.system}] if prompting.system else []


def example_messages(prompting: Prompting) -> list[dict[str, str]]:
    """Return the examples as turns of a conversation."""
    return [
        message
        for example in prompting.examples
        for message in (
            {"role": "user", "content": example.user},
            {"role": "assistant", "content": example.assistant},
        )
    ]


def write_prompting(folder: Path, prompting: Prompting) -> None:
    """Put the prompting into the chat template of a staged folder."""
    template = _chat_template(folder)
    if prompting.system or prompting.examples:
        opening, examples = _literal(system_messages(prompting)), _literal(example_messages(prompting))
        template = PRESET % (opening, examples) + template
    file = folder / "chat_template.jinja"
    # Never through a link into the checkpoint.
    file.unlink(missing_ok=True)
    file.write_text(template, encoding="utf-8")


def around_user_message(tokenizer: ChatTokenizer) -> tuple[str, str]:
    """Return what the chat template puts before and after the text of a single user message."""
    before, _, after = tokenizer.render([{"role": "user", "content": MARK}]).partition(MARK)
    return before, after


def _chat_template(folder: Path) -> str:
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if not isinstance(template, str):
        raise StepError("The checkpoint has no chat template (chat_template.jinja, or in tokenizer_config.json).")
    return template


def _literal(messages: list[dict[str, str]]) -> str:
    """Return messages as a literal of the template language, which accepts JSON's lists, objects and strings."""
    # Not escaped: the template language would read JSON's escapes of an emoji as two surrogates.
    return json.dumps(messages, ensure_ascii=False)
