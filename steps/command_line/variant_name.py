"""The name of a variant: mode, precision, interface, and everything in which it differs from the shipped options.

A name never says less than the configuration: another system prompt is `…-prompt-3f2a`, 64 tokens are `…-max64`.
"""

import re
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from steps.command_line.composition import compose, option_names
from steps.config.schema import BuildConfig
from steps.digests import digest

# What a changed key is called in a name. A key that is not here goes by its last word.
SHORT = {
    "generation.temperature": "t",
    "generation.top_p": "p",
    "generation.top_k": "k",
    "generation.max_tokens": "max",
    "mode.max_batch_size": "batch",
    "precision.block_size": "block",
    "precision.accuracy_level": "level",
    "model.long_context": "long",
    "mode.device": "",
    "mode.execution_provider": "",
}
# Groups whose option is the first part of a name, or none if it is the default.
NAMED = ("mode", "precision", "prompting")
# Longer values are shortened to a digest.
LONGEST = 20


def variant_name(config: BuildConfig) -> str:
    """Return a readable name that tells apart any two configurations."""
    shipped = _shipped(config)
    parts = [config.mode.name, config.precision.name, config.interface]
    if config.model.name != "miniature":
        parts.insert(0, config.model.name)
    parts += _prompting(config, shipped)
    if config.generation.temperature:
        # MLflow allows no dot in the name of a model.
        parts.append(f"t{_text(config.generation.temperature)}")
    for group in ("mode", "precision", "model", "generation"):
        ours, theirs = asdict(getattr(config, group)), asdict(getattr(shipped, group))
        # A folder counts by what is in it: `build` tells two of them apart.
        skipped = {"name", "source", "path", "temperature"}
        parts += [
            _part(f"{group}.{key}", value) for key, value in ours.items() if key not in skipped and value != theirs[key]
        ]
    return "-".join(parts)


def _shipped(config: BuildConfig) -> Any:
    """Return the configuration of the same options as conf/ has them."""
    generation = "greedy" if config.generation.greedy else "sampled"
    chosen = [f"mode={config.mode.name}", f"precision={config.precision.name}", f"generation={generation}"]
    for group in ("model", "prompting"):
        if (name := getattr(config, group).name) in option_names(group):
            chosen.append(f"{group}={name}")
    shipped = _composed(tuple(chosen))
    return shipped if type(shipped.model) is type(config.model) else replace(shipped, model=config.model)


@cache
def _composed(chosen: tuple[str, ...]) -> Any:
    return compose("build", list(chosen))


def _prompting(config: BuildConfig, shipped: Any) -> list[str]:
    """Return the part for what a variant puts before every conversation: its name, with a digest if it was changed."""
    ours, name = asdict(config.prompting), config.prompting.name
    if ours == asdict(shipped.prompting):
        return [] if name == "plain" else [name]
    if name not in option_names("prompting"):
        return [name]
    return [f"{'prompt' if name == 'plain' else name}-{digest(ours)[:4]}"]


def _part(key: str, value: Any) -> str:
    name = SHORT.get(key, key.rpartition(".")[2])
    return name if value is True else f"{name}{_text(value)}"


def _text(value: Any) -> str:
    """Return a value as a part of a name that MLflow accepts."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return plain if len(plain) <= LONGEST else digest(text)[:4]
