"""interface=prompt: `{"prompt": text}` in, a text out, as in the upstream sample's second option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steps.interfaces.interface import Interface, Reply
from steps.interfaces.settings import setting_columns, setting_params

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from steps.config.schema import Generation


def _signature(generation: Generation | None) -> ModelSignature:
    """Return prompt: string → string, with the settings if the model takes any."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    prompt, outputs = ColSpec("string", "prompt"), Schema([ColSpec("string")])
    if generation is None:
        return ModelSignature(inputs=Schema([prompt]), outputs=outputs)
    return ModelSignature(inputs=Schema([prompt, *setting_columns()]), outputs=outputs, params=setting_params())


def _reply(content: Any) -> Reply:
    """Read a text, or a list of texts if more than one choice was asked for."""
    return Reply(content if isinstance(content, list) else [content])


INTERFACE = Interface(
    name="prompt",
    task=None,
    takes_conversations=False,
    settings_in_row=False,
    example={"prompt": "What is the capital of Spain?"},
    signature=_signature,
    row=lambda question: {"prompt": question.prompt},
    params=lambda question: question.settings or None,
    reply=_reply,
    piece=str,
)
