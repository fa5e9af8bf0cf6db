"""Turn a build configuration into MLflow's parameters, which are text, and back."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from omegaconf import ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from steps.config.schema import BuildConfig


def to_params(config: BuildConfig) -> dict[str, str]:
    """Return a parameter for every key. The name of a group is stored under the group's own key: `mode`."""
    return {key: _text(value) for key, value in _flatten(asdict(config)).items()}


def from_params(params: Mapping[str, str], empty: BuildConfig) -> BuildConfig:
    """Return the configuration that parameters were made from.

    Args:
        params: What `to_params` returned, by this version or an earlier one.
        empty: A configuration whose groups have the right types. Keys that they do not have are ignored.
    """
    node = OmegaConf.structured(empty)
    groups = _groups(empty)
    for key, value in params.items():
        path = f"{key}.name" if key in groups else key
        # A key that this version does not have, or a value that no longer fits: keep the default.
        with contextlib.suppress(OmegaConfBaseException, ValueError):
            OmegaConf.update(node, path, _value(value, OmegaConf.select(node, path)))
    # A key that the parameters lack stays MISSING.
    config: Any = OmegaConf.to_container(
        node, resolve=True, throw_on_missing=False, structured_config_mode=SCMode.INSTANTIATE
    )
    return cast(BuildConfig, config)


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


def _value(text: str, default: Any) -> Any:
    """Return the value that a text stands for. OmegaConf converts numbers and booleans to the type of their key."""
    if isinstance(default, str):
        return text
    if text == "null":
        return None
    return json.loads(text) if isinstance(default, ListConfig) else text
