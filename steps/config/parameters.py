"""Turn a build configuration into MLflow's parameters, which are text, and back."""

import contextlib
import json
import shlex
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import reduce
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from steps.config.schema import BuildConfig

# How to build, which says nothing about the variant.
NO_PARAMETERS = ("check", "force")


def to_params(config: BuildConfig) -> dict[str, str]:
    """Return a parameter for every key. The name of a group is stored under the group's own key: `mode`."""
    return {key: _text(value) for key, value in _flatten(asdict(config)).items() if key not in NO_PARAMETERS}


def from_params(params: Mapping[str, str], empty: BuildConfig) -> BuildConfig:
    """Return the configuration that parameters were made from. A key that they lack stays MISSING.

    OmegaConf takes no part: it would replace `${…}` in a user's text, and refuses a key that is MISSING.

    Args:
        params: What `to_params` returned, by this version or an earlier one.
        empty: A configuration whose groups have the right types. Keys that they do not have are ignored.
    """
    config, groups = deepcopy(empty), _groups(empty)
    for key, text in params.items():
        *parents, name = (f"{key}.name" if key in groups else key).split(".")
        # A key that this version does not have, or a value that no longer fits: keep the default.
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            owner = reduce(getattr, parents, config)
            setattr(owner, name, _value(text, get_type_hints(type(owner))[name]))
    return config


def _groups(config: BuildConfig) -> list[str]:
    return [key for key, value in asdict(config).items() if isinstance(value, dict) and "name" in value]


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix.rstrip(".") if key == "name" and prefix else f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    """Return a value as a user would type it with -P."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _value(text: str, kind: Any) -> Any:
    """Return the value that a text stands for; raises ValueError or TypeError if it is none of this type."""
    if isinstance(kind, UnionType):  # a type or None
        if text == "null":
            return None
        (kind,) = (choice for choice in get_args(kind) if choice is not NoneType)
    if kind is not str and text.startswith("'"):
        # Earlier versions kept what `mlflow run` logs, which is in the shell's quotes.
        (text,) = shlex.split(text)
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [item(**entry) for entry in json.loads(text)]
    return json.loads(text) if kind is bool else kind(text)
