"""Overrides as a typed configuration, by Hydra.

Every key and value is checked before a step starts, and all faults are reported at once. An option of a group has
only the keys that it reads: `mode.device` exists with mode=pyfunc and not with mode=onnx.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import cache, lru_cache
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steps.command_line.hydra_schemas import initialized_hydra
from steps.command_line.overrides import OPEN_KEYS, key_of
from steps.config.validation import faults
from steps.errors import StepError, unknown
from steps.modes import build_faults


def compose(step_name: str, overrides: list[str]) -> Any:
    """Return the typed configuration of a step."""
    return deepcopy(_compose(step_name, tuple(overrides)))


@lru_cache(maxsize=1024)
def _compose(step_name: str, overrides: tuple[str, ...]) -> Any:
    # A step composes each of its variants several times: to check, to name and to build it.
    with initialized_hydra():
        return OmegaConf.to_object(hydra.compose(step_name, list(overrides)))


def check(step_name: str, jobs: list[list[str]], *, devices: bool = True) -> None:
    """Check every key and value of every job; raises StepError with all faults together.

    Args:
        step_name: The step.
        jobs: The overrides of each job.
        devices: Whether to refuse a build for a device that this machine does not have.
    """
    sentences: dict[str, None] = {}  # an ordered set: points of a sweep share most of their faults
    for config in _compose_all(step_name, jobs):
        sentences |= dict.fromkeys(faults(config))
        if step_name == "build":
            sentences |= dict.fromkeys(build_faults(config))
            if devices and config.device_fault:
                sentences |= {f"{config.device_fault}. check=false builds it here for such a machine.": None}
    if sentences:
        raise StepError(*sentences)


def _compose_all(step_name: str, jobs: list[list[str]]) -> list[Any]:
    """Return the configuration of every job; raises StepError with the faults of all single overrides."""
    with initialized_hydra():
        try:
            return [compose(step_name, job) for job in jobs]
        except (HydraException, OmegaConfBaseException):
            # Hydra names the first fault only. To try every override alone takes long, so only now.
            distinct = _distinct_overrides(step_name, jobs)
            faulty = dict.fromkeys(
                fault for choices, override in distinct for fault in _override_faults(step_name, override, choices)
            )
            if not faulty:
                raise
            raise StepError(*faulty) from None


def without_foreign_keys(step_name: str, jobs: list[list[str]], keys: set[str]) -> list[list[str]]:
    """Return the jobs without those overrides of `keys` that their options do not have.

    A key that no job has stays everywhere, so that `check` reports it.
    """
    with initialized_hydra():
        known = [set(known_keys(step_name, _choices(step_name, job))) for job in jobs]
        optional = {key for key in keys if any(key in known_here for known_here in known)}
        return [
            [override for override in job if key_of(override) not in optional or key_of(override) in known_here]
            for job, known_here in zip(jobs, known, strict=True)
        ]


@cache
def option_names(key: str) -> tuple[str, ...]:
    """Return the names of the options of a group of conf/; none if the key is no group."""
    # Hydra reads the folder each time, and every override asks for every key.
    with initialized_hydra():
        return tuple(GlobalHydra.instance().config_loader().get_group_options(key) if "." not in key else [])


def to_yaml(config: Any) -> str:
    """Return a typed configuration as YAML. OmegaConf would read a `${` in a user's text as an interpolation."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


@cache
def known_keys(step_name: str, choices: tuple[str, ...]) -> list[str]:
    """Return every dotted key of a step's configuration with the options that `choices` (overrides) select."""
    composed = hydra.compose(step_name, list(choices))
    return list(_dotted(OmegaConf.to_container(composed, throw_on_missing=False)))


def _dotted(content: Any, prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _distinct_overrides(step_name: str, jobs: list[list[str]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each override once for each set of valid options that it is combined with."""
    seen = set()
    for job in jobs:
        choices = _choices(step_name, job)
        for override in job:
            if (choices, override) not in seen:
                seen.add((choices, override))
                yield choices, override


def _choices(step_name: str, job: list[str]) -> tuple[str, ...]:
    """Return the overrides of a job that choose an option of a group, as far as the option exists."""
    groups = {key for key in known_keys(step_name, ()) if option_names(key)}
    chosen = [override for override in job if key_of(override) in groups]
    return tuple(override for override in chosen if override.partition("=")[2] in option_names(key_of(override)))


def _override_faults(step_name: str, override: str, choices: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with one override: an unknown key or option, a value of the wrong type."""
    key, value = key_of(override), override.partition("=")[2]
    keys = known_keys(step_name, choices)
    if key.startswith("hydra") or override in choices:
        return
    if key not in keys and not key.startswith(OPEN_KEYS):
        yield f"{_unknown_key(step_name, key, keys, choices)} Got {override.lstrip('+~')}."
    elif options := option_names(key):
        yield unknown(key, value, options)
    else:
        try:
            hydra.compose(step_name, [*choices, override])
        except (HydraException, OmegaConfBaseException) as error:
            yield f"{key}: {_one_line(error.__cause__ or error)}."


def _unknown_key(step_name: str, key: str, keys: list[str], choices: tuple[str, ...]) -> str:
    """Return a sentence about a key that the configuration does not have: whose key it is, or the nearest one."""
    group = key.partition(".")[0]
    owners = [
        f"{group}={option}"
        for option in (option_names(group) if group in keys else [])
        if key in known_keys(step_name, (f"{group}={option}",))
    ]
    if owners:
        chosen = next((choice for choice in choices if key_of(choice) == group), f"the default {group}")
        add = owners[0] if len(owners) == 1 else "one of them"
        return f"{key} is not a key of {chosen}, it is a key of {', '.join(owners)}. Add {add}."
    parent = key.rpartition(".")[0]
    if not parent and (longer := [known for known in keys if known.endswith(f".{key}")]):
        return f"Unknown key '{key}'. Did you mean {' or '.join(longer)}?"
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    return unknown("key", key, siblings if parent in keys else [known for known in keys if "." not in known])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n    full_key:")[0].split())
