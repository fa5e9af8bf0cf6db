"""The settings of a request in a model's signature: MLflow drops whatever the signature does not name.

Every setting is both a column (a field of a row) and a param (of a call). Among them are fields of MLflow's and
OpenAI's chat API that our wrappers honour or refuse: without a column or a param, MLflow would ignore them. They have
no defaults, because MLflow would send a default along with every call, where it would count as the caller's wish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
}
# Settings that MLflow's chat schema has no fields for can also stand in this object.
CUSTOM_INPUTS = {"seed": "long", "top_k": "long"}


def setting_columns() -> list[ColSpec]:
    """Return the settings as columns, which a row may leave out."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import AnyType, Array, DataType, Map

    columns = [ColSpec(kind, name, required=False) for name, kind in TYPES.items()]
    lists = ColSpec(Array(DataType.string), "stop", required=False)
    # As in MLflow's chat schema.
    custom = Map(AnyType())  # type: ignore[no-untyped-call]
    return [*columns, lists, ColSpec(custom, "custom_inputs", required=False)]


def setting_params() -> ParamSchema:
    """Return the settings as params."""
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.types.schema import Object, Property

    params = [ParamSpec(name, kind, None) for name, kind in TYPES.items()]
    custom = Object([Property(name, kind, required=False) for name, kind in CUSTOM_INPUTS.items()])
    # MLflow allows no default but a list for a list, and an object for an object.
    lists = ParamSpec("stop", "string", [], shape=(-1,))
    return ParamSchema([*params, lists, ParamSpec("custom_inputs", custom, {})])
