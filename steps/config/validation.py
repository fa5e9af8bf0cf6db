"""Turn the bounds that the schema declares into sentences about values that break them."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from steps.config.schema import PROMPT_PREFIX, EvaluateConfig, MainConfig, Promotion, RegisterConfig

# What MLflow takes as part of the name of a prompt and of a LoggedModel.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
# MLflow's `models:/NAME@ALIAS` reads no other name back.
MODEL_NAME = re.compile(r"""(?!\s|\.{1,2}$)[^/:?'"\x00-\x1f\x7f]{1,256}(?<!\s)""")


def faults(config: Any) -> list[str]:
    """Return a sentence for every value of a step's configuration that is out of bounds, by its full key."""
    sentences = [*_bound_faults(config)]
    if isinstance(config, EvaluateConfig):
        sentences += _evaluate_faults(config)
    if isinstance(config, EvaluateConfig | RegisterConfig):
        sentences += _limit_faults(config.promotion)
    if isinstance(config, RegisterConfig):
        sentences += _register_faults(config)
    return sentences


def _bound_faults(config: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(config):
        value, key = getattr(config, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from _bound_faults(value, f"{key}.")
        elif entry.metadata.get("needed") and not value:
            yield f"{key} is needed: give -P {key}=…"
        elif "one_of" in entry.metadata and value not in entry.metadata["one_of"]:
            yield f"{key} must be one of {', '.join(map(str, entry.metadata['one_of']))}, got {value!r}."
        elif "all_of" in entry.metadata and (unknown := [one for one in value if one not in entry.metadata["all_of"]]):
            yield f"each entry of {key} must be one of {', '.join(entry.metadata['all_of'])}, got {unknown[0]!r}."
        elif entry.metadata.get("plain_name") and not PLAIN_NAME.fullmatch(value):
            yield f"{key} must be at most 100 letters from a to z, digits, '_' and '-', got {value!r}."
        elif isinstance(value, int | float) and not _within(value, entry.metadata):
            yield f"{key} must be {_range(entry.metadata)}, got {value!r}."


def _within(value: float, bounds: Any) -> bool:
    """Return True if a number is within its bounds; written so that a NaN is not within any."""
    unbounded = not bounds.keys() & {"at_least", "above", "at_most"}
    low = bounds.get("at_least", -math.inf) <= value and bounds.get("above", -math.inf) < value
    return unbounded or (low and value <= bounds.get("at_most", math.inf))


def _range(bounds: Any) -> str:
    words = [("above", "above"), ("at_least", "at least"), ("at_most", "at most")]
    return " and ".join(f"{word} {bounds[name]:g}" for name, word in words if name in bounds)


def _evaluate_faults(config: EvaluateConfig) -> Iterator[str]:
    if isinstance(config, MainConfig) and config.run_id:
        yield f"run_id is a key of evaluate; main scores all its variants. Leave it out, got '{config.run_id}'."
    if not config.evaluate.metrics:
        yield "evaluate.metrics must name at least one metric, got none."
    judge = config.evaluate.judge
    if bool(judge.model) != bool(judge.address):
        key = "evaluate.judge.model" if judge.address else "evaluate.judge.address"
        yield f"{key} is needed for a judge: give -P {key}=…"


def _limit_faults(promotion: Promotion) -> Iterator[str]:
    for name, limit in promotion.limits.items():
        if not isinstance(limit, dict) or not limit or set(limit) - {"min", "max"}:
            yield f"promotion.limits.{name} must have min, max or both, got {limit or 'neither'}."
        elif wrong := [value for value in limit.values() if not isinstance(value, int | float)]:
            yield f"promotion.limits.{name} must be numbers, got {wrong[0]!r}."
        elif limit.get("min", -math.inf) > limit.get("max", math.inf):
            yield f"promotion.limits.{name}.min must be at most its max {limit['max']:g}, got {limit['min']:g}."


def _register_faults(config: RegisterConfig) -> Iterator[str]:
    if isinstance(config, MainConfig) and not config.variants:
        yield "variants must name at least one variant, such as [[mode=onnx], [mode=pyfunc]], got none."
    if isinstance(config, MainConfig) and config.action != "promote":
        yield f"action must be promote in main, got '{config.action}'. The others are for register."
    if config.version is not None and config.action != "rollback":
        yield f"version needs action=rollback, got version={config.version} with action={config.action}."
    if not MODEL_NAME.fullmatch(config.registered_model):
        yield (
            "registered_model must be a name of at most 256 characters without '/', ':', '?', quotes and line breaks, "
            f"got {config.registered_model!r}."
        )
    elif config.registered_model.startswith(PROMPT_PREFIX):
        yield (
            f"registered_model must not begin with '{PROMPT_PREFIX}', which is for prompts, "
            f"got '{config.registered_model}'."
        )
