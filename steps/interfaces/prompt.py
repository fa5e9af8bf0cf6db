"""interface=prompt: `{"prompt": text}` in, a text out, as in the upstream sample's second option."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steps.interfaces.interface import Interface, Reply

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from steps.config.schema import Generation


def _signature(generation: Generation | None) -> ModelSignature:
    """Return prompt: string → string; the settings, if the model takes any, are params."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params: Any = None
    if generation is not None:
        params = ParamSchema(
            [
                ParamSpec("temperature", "double", generation.temperature),
                ParamSpec("top_p", "double", generation.top_p),
                ParamSpec("top_k", "long", generation.top_k),
                ParamSpec("max_tokens", "long", None),
                ParamSpec("stop", "string", [], shape=(-1,)),
                ParamSpec("n", "long", 1),
                ParamSpec("seed", "long", None),
            ]
        )
    inputs, outputs = Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string")])
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)


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
