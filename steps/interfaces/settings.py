"""The settings of a request in a model's signature: MLflow drops whatever the signature does not name.

Every setting is both a column (a field of a row) and a param (of a call). Among them are fields of MLflow's and
OpenAI's chat API that our wrappers honour or refuse: without a column or a param, MLflow would ignore them. They have
no defaults, because MLflow would send a default along with every call, where it would count as the caller's wish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.types import ColSpec, ParamSchema

TYPES = {
    "temperature": "double",
    "top_p": "double",
    "top_k": "long",
    "max_tokens": "long",
    "max_completion_tokens": "long",
    "n": "long",
    "seed": "long",
    "stream": "boolean",
    "frequency_penalty": "double",
    "presence_penalty": "double",
    "repetition_penalty": "double",
    "min_p": "double",
    "logprobs": "boolean",
    "top_logprobs": "long",
    "tool_choice": "string",
}
LISTS = ("stop", "tools", "functions")
OBJECTS = ("custom_inputs", "logit_bias", "response_format")
# Settings that MLflow's chat schema has no fields for can also stand in this object.
CUSTOM_INPUTS = {"seed": "long", "top_k": "long"}


def setting_columns() -> list[ColSpec]:
    """Return the settings as columns, which a row may leave out."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import AnyType, Array, DataType, Map

    columns = [ColSpec(kind, name, required=False) for name, kind in TYPES.items()]
    columns += [ColSpec(Array(DataType.string), name, required=False) for name in LISTS]
    # As `custom_inputs` in MLflow's chat schema.
    anything = Map(AnyType())  # type: ignore[no-untyped-call]
    return [*columns, *(ColSpec(anything, name, required=False) for name in OBJECTS)]


def setting_params() -> ParamSchema:
    """Return the settings as params.

    MLflow has no param for an object with any names. As a text, `logit_bias` is refused there instead of ignored.
    """
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.types.schema import AnyType, Map, Object, Property

    params = [ParamSpec(name, kind, None) for name, kind in (TYPES | {"logit_bias": "string"}).items()]
    # MLflow allows no default but a list for a list, and an object for an object.
    params += [ParamSpec(name, "string", [], shape=(-1,)) for name in LISTS]
    anything = Map(AnyType())  # type: ignore[no-untyped-call]
    objects: dict[str, dict[str, Any]] = {
        "custom_inputs": CUSTOM_INPUTS,
        "response_format": {"type": "string", "json_schema": anything},
    }
    for name, properties in objects.items():
        kind = Object([Property(key, value, required=False) for key, value in properties.items()])
        params.append(ParamSpec(name, kind, {}))
    return ParamSchema(params)
