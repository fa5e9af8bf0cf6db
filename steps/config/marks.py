"""Find the keys that the schema declares with a mark."""

from dataclasses import fields, is_dataclass

from steps.config.schema import SOURCES, MainConfig, Model, ScoreConfig


def keys_with(mark: str, schemas: tuple[type, ...] = (MainConfig, ScoreConfig), prefix: str = "") -> frozenset[str]:
    """Return the dotted keys that are declared with a mark: `free_text`, `is_path`."""
    keys: set[str] = set()
    for entry in (entry for schema in schemas for entry in fields(schema)):
        if entry.metadata.get(mark):
            keys.add(f"{prefix}{entry.name}")
        elif isinstance(entry.type, type) and is_dataclass(entry.type):
            nested: tuple[type, ...] = tuple(SOURCES.values()) if entry.type is Model else (entry.type,)
            keys |= keys_with(mark, nested, f"{prefix}{entry.name}.")
    return frozenset(keys)
