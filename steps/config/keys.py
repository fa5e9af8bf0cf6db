"""Declare the keys of the configuration (schema.py) with their defaults and bounds."""

from dataclasses import field
from typing import Any

# OmegaConf's mark of a value that must be given. Written out, because a process that measures memory imports this.
MISSING: Any = "???"


def key(default: Any = MISSING, *, free_text: bool = False, is_path: bool = False, **bounds: Any) -> Any:
    """Declare a configuration key. A list or dict default is copied for each configuration.

    Args:
        default: The value if no file and no override gives one; MISSING if conf/ must give it.
        free_text: Take the value exactly as the user typed it, commas and quotes included.
        is_path: A file or folder. A relative path starts where the user stands.
        bounds: What `validation.py` checks: at_least, at_most, above (numbers), one_of (a tuple), all_of (a tuple: each
            entry of a list is one of it), needed (True), plain_name (True: the value is a part of names that MLflow
            restricts).
    """
    metadata = {"free_text": free_text, "is_path": is_path, **bounds}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
