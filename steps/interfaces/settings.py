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
}


def setting_columns() -> list[ColSpec]:
    """Return the settings as columns, which a row may leave out."""
    from mlflow.types import ColSpec
    from mlflow.types.schema import Array, DataType

    columns = [ColSpec(kind, name, required=False) for name, kind in TYPES.items()]
    return [*columns, ColSpec(Array(DataType.string), "stop", required=False)]


def setting_params() -> ParamSchema:
    """Return the settings as params."""
    from mlflow.types import ParamSchema, ParamSpec

    params = [ParamSpec(name, kind, None) for name, kind in TYPES.items()]
    # MLflow allows no default but a list for a list.
    return ParamSchema([*params, ParamSpec("stop", "string", [], shape=(-1,))])
