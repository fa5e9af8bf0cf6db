"""Find the keys that the schema declares with a mark."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass

from steps.config.launch import LAUNCHERS, LaunchConfig, Launcher
from steps.config.schema import SOURCES, MainConfig, Model, ScoreConfig

ROOTS = (MainConfig, ScoreConfig, LaunchConfig)
# The options of groups whose options have keys of their own.
OPTIONS: dict[type, Iterable[type]] = {Model: SOURCES.values(), Launcher: LAUNCHERS.values()}


def keys_with(mark: str, schemas: Iterable[type] = ROOTS, prefix: str = "") -> frozenset[str]:
    """Return the dotted keys that are declared with a mark: `free_text`, `is_path`."""
    keys: set[str] = set()
    for entry in (entry for schema in schemas for entry in fields(schema)):
        if entry.metadata.get(mark):
            keys.add(f"{prefix}{entry.name}")
        elif isinstance(entry.type, type) and is_dataclass(entry.type):
            keys |= keys_with(mark, OPTIONS.get(entry.type, (entry.type,)), f"{prefix}{entry.name}.")
    return frozenset(keys)
