"""Turn a configuration into MLflow's parameters: dotted keys and text."""

import json
from typing import Any


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys. The name of a group is stored under the group's own key: `mode`, not `mode.name`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix.rstrip(".") if key == "name" and prefix else f"{prefix}{key}"] = value
    return flat


def text(value: Any) -> str:
    """Return a value as a user would type it with -P."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:g}" if isinstance(value, float) else str(value)
