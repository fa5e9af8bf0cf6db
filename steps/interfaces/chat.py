"""interface=chat: MLflow's llm/v1/chat schemas, the shape of OpenAI's chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steps.interfaces.interface import Interface, Question, Reply

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from steps.config.schema import Generation

# MLflow's schema has no field for a seed.
CUSTOM_INPUTS = ("seed",)


def _signature(generation: Generation | None) -> ModelSignature:
    """Return MLflow's own chat schemas, with the seed, which they do not have, as a param."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    params: Any = ParamSchema([ParamSpec("seed", "long", None)]) if generation else None
    return ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA, params=params)


def _row(question: Question) -> dict[str, Any]:
    settings = dict(question.settings)
    custom = {name: settings.pop(name) for name in CUSTOM_INPUTS if name in settings}
    return {"messages": question.messages} | settings | ({"custom_inputs": custom} if custom else {})


def _reply(content: Any) -> Reply:
    """Read one completion. MLflow's stock flavour returns it in a list."""
    is_object = isinstance(content, dict)
    if not is_object:
        if len(content) != 1:
            raise ValueError(f"1 row got {len(content)} replies")
        (content,) = content
    usage, choices = content.get("usage") or {}, content["choices"]
    completion_tokens = usage.get("completion_tokens")
    if usage and usage["total_tokens"] != usage["prompt_tokens"] + completion_tokens:
        raise ValueError("the token counts of usage do not add up")
    return Reply(
        [choice["message"]["content"] for choice in choices],
        [choice.get("finish_reason") for choice in choices],
        completion_tokens,
        is_object,
    )


def _piece(content: dict[str, Any]) -> str:
    text: str = content["choices"][0]["delta"].get("content", "")
    return text


INTERFACE = Interface(
    name="chat",
    task="llm/v1/chat",
    takes_conversations=True,
    settings_in_row=True,
    example={"messages": [{"role": "user", "content": "What is the capital of Spain?"}]},
    signature=_signature,
    row=_row,
    params=lambda _: None,
    reply=_reply,
    piece=_piece,
)
