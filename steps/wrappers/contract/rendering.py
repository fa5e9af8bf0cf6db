"""Render a conversation, or refuse what the model's chat template does not render."""

from typing import Any

from ..chat_template import TemplateRefusal, Tools
from ..tokenizer import ChatTokenizer
from .errors import RequestError


def encode_conversation(
    messages: list[dict[str, Any]], tokenizer: ChatTokenizer, tools: Tools | None = None
) -> list[int]:
    """Return the token ids of a checked conversation, up to where the assistant's turn begins."""
    try:
        ids = tokenizer.encode_chat(messages, tools) if tools else tokenizer.encode_chat(messages)
    except TemplateRefusal as refusal:
        message = f"the model's chat template refuses this conversation: {refusal}"
        raise RequestError("template_refused", message) from None
    index = tokenizer.template.unrendered([message["role"] for message in messages])
    if index is not None:
        raise RequestError(
            "role_not_rendered",
            f"messages[{index}] has role {messages[index]['role']!r}, which the model's chat template leaves out at "
            "this place; put its text into a message that it renders, such as the first user message",
        )
    return ids
