"""interface=chat: MLflow's llm/v1/chat schemas, the shape of OpenAI's chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steps.interfaces.interface import Interface, Question, Reply
from steps.interfaces.settings import setting_columns, setting_params

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    from steps.config.schema import Generation

# MLflow's schema has no field for a seed.
CUSTOM_INPUTS = ("seed",)


def _signature(generation: Generation | None) -> ModelSignature:
    """Return MLflow's chat schemas. A model that takes settings has all of them, and the reply that it really gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    if generation is None:
        return ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA)
    named = CHAT_MODEL_INPUT_SCHEMA.input_names()
    more = [column for column in setting_columns() if column.name not in named]
    inputs = Schema([*CHAT_MODEL_INPUT_SCHEMA.inputs, *more])
    return ModelSignature(inputs=inputs, outputs=_reply_schema(), params=setting_params())


def _reply_schema() -> Schema:
    """Return MLflow's schema of a reply without the fields that ours never has: Spark asks every reply for each."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.llm import CHAT_MODEL_OUTPUT_SCHEMA
    from mlflow.types.schema import Array, DataType, Object, Property

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    choice = Object(
        [Property("index", DataType.long), Property("message", message), Property("finish_reason", DataType.string)]
    )
    columns = CHAT_MODEL_OUTPUT_SCHEMA.input_dict() | {"choices": ColSpec(Array(choice), "choices")}
    del columns["custom_outputs"]
    return Schema(list(columns.values()))


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
        usage.get("prompt_tokens"),
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
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
