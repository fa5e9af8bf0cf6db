"""Start Hydra with the schemas of every key."""

import contextlib
from collections.abc import Iterator
from functools import cache

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from steps.config.launch import LAUNCHERS
from steps.config.paths import CONF
from steps.config.schema import PRECISIONS, SOURCES, STEPS, Precision
from steps.modes import MODES, get_mode


def option_schemas() -> dict[str, dict[str, type]]:
    """Return the groups whose options differ in their keys: by group, by the name of a schema, its dataclass."""
    return {
        "model": dict(SOURCES),
        "mode": {name: get_mode(name).settings for name in MODES},
        "launcher": dict(LAUNCHERS),
        "precision": {"plain": Precision, **PRECISIONS},
    }


def store_schemas() -> None:
    """Make the schemas known to Hydra: `build_schema` and so on, and `/schema/GROUP/NAME` for options."""
    for step_name, schema in STEPS.items():
        _store(None, f"{step_name}_schema", schema)
    for group, schemas in option_schemas().items():
        for name, schema in schemas.items():
            _store(f"schema/{group}", name, schema)


@cache
def _store(group: str | None, name: str, schema: type) -> None:
    # Hydra keeps it until the process ends, and takes longer to store all of them than to read the files.
    ConfigStore.instance().store(group=group, name=name, node=schema)


@contextlib.contextmanager
def initialized_hydra() -> Iterator[None]:
    """Have Hydra initialised for composing, whether or not it already runs."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    store_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield
