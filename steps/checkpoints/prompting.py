"""Prompting: the system prompt and the examples that a variant puts before every conversation.

It is written into the checkpoint's chat template, so every mode that renders a conversation with this tokenizer
applies it.
"""

import json
from pathlib import Path

from steps.checkpoints.vocabulary import load_tokenizer
from steps.config.schema import Prompting
from steps.errors import StepError
from steps.wrappers.chat_template import MARK, ChatTemplate, TemplateRefusal
from steps.wrappers.tokenizer import ChatTokenizer

# The system prompt applies unless the conversation has one of its own. Its last line ends with a newline that a block
# swallows, and nothing more: the template behind it may begin with white space that it writes.
PRESET = """\
{%%- set preset_turns = messages -%%}
{%%- if preset_turns and preset_turns[0]['role'] == 'system' -%%}
{%%- set preset_opening = [preset_turns[0]] -%%}{%%- set preset_turns = preset_turns[1:] -%%}
{%%- else -%%}
{%%- set preset_opening = %s -%%}
{%%- endif -%%}
{%%- set messages = preset_opening + %s + preset_turns %%}
"""


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


def check_prompting(folder: Path, prompting: Prompting) -> ChatTemplate:
    """Return the chat template of a checkpoint.

    Raises:
        StepError: The folder has no chat template that can be used, or it does not render the prompting.
    """
    template = _chat_template(folder)
    roles = [message["role"] for message in system_messages(prompting) + example_messages(prompting)]
    _refuse_unrendered(template, ["user"], "A chat needs it.")
    _refuse_unrendered(template, [*roles, "user"], _advice(prompting))
    return template


def write_prompting(folder: Path, prompting: Prompting) -> None:
    """Put the prompting into the chat template of a staged folder; raises StepError as `check_prompting` does."""
    source = check_prompting(folder, prompting).source
    if prompting.system or prompting.examples:
        source = PRESET % (_literal(system_messages(prompting)), _literal(example_messages(prompting))) + source
    file = folder / "chat_template.jinja"
    # Never through a link into the checkpoint.
    file.unlink(missing_ok=True)
    file.write_text(source, encoding="utf-8")


def around_user_message(tokenizer: ChatTokenizer) -> tuple[str, str]:
    """Return what the chat template puts before and after the text of a single user message."""
    before, _, after = tokenizer.render([{"role": "user", "content": MARK}]).partition(MARK)
    return before, after


def _chat_template(folder: Path) -> ChatTemplate:
    tokenizer = load_tokenizer(folder)
    try:
        return tokenizer.template
    except (ValueError, OSError) as error:
        raise StepError(f"The checkpoint's tokenizer cannot be used: {error}.") from None


def _refuse_unrendered(template: ChatTemplate, roles: list[str], advice: str) -> None:
    """Raise StepError if the template refuses a conversation of these roles or leaves one of its messages out."""
    try:
        template.render([{"role": role, "content": MARK} for role in roles])
    except TemplateRefusal as refusal:
        shown = ", ".join(roles)
        raise StepError(
            f"The checkpoint's chat template refuses a conversation of {shown}: {refusal}. {advice}"
        ) from None
    if (index := template.unrendered(roles)) is not None:
        raise StepError(f"The checkpoint's chat template leaves out a message of role {roles[index]!r}. {advice}")


def _advice(prompting: Prompting) -> str:
    parts = [name for name, value in (("system", prompting.system), ("examples", prompting.examples)) if value]
    given = " and ".join(f"prompting.{name}" for name in parts)
    return f"{given} would be lost; use prompting=plain, or a checkpoint whose template renders it."


def _literal(messages: list[dict[str, str]]) -> str:
    """Return messages as a literal of the template language, which accepts JSON's lists, objects and strings."""
    # Not escaped: the template language would read JSON's escapes of an emoji as two surrogates.
    return json.dumps(messages, ensure_ascii=False)
