"""Which variants the main job builds: those of conf/main.yaml, or the part of them that the user asks for.

-P variants=onnx-int4-chat,pyfunc-fp32-chat    by name
-P variants=quick                              a preset of conf/main.yaml
-P mode=onnx                                   those that have this choice
"""

from functools import cache

import yaml

from steps.command_line.composition import compose
from steps.command_line.hydra_schemas import initialized_hydra
from steps.command_line.overrides import expand, key_of, parse
from steps.command_line.variant_name import variant_name
from steps.config.paths import CONF
from steps.config.schema import BuildConfig
from steps.errors import StepError, unknown

# Keys that pick variants, as far as some variant has the value. Any other value applies to all of them.
PICKING = ("mode", "precision", "interface", "prompting", "generation")


def listed_variants(own: list[str]) -> list[list[str]]:
    """Return the overrides of each variant that main is configured with; raises StepError for unknown names."""
    config = compose("main", own)
    is_named = any(len(entry) == 1 and "=" not in entry[0] for entry in config.variants)
    known = _shipped_variants() if is_named else {}
    listed: list[list[str]] = []
    for entry in config.variants:
        if len(entry) == 1 and "=" not in entry[0]:
            names = config.presets.get(entry[0], entry)
            if unknown_names := [name for name in names if name not in known]:
                raise StepError(*(unknown("variant", name, [*known, *config.presets]) for name in unknown_names))
            listed += [known[name] for name in names]
        else:
            listed.append(entry)
    return [parse(list(entry))[1] for entry in dict.fromkeys(map(tuple, listed))]


def pick(listed: list[list[str]], shared: list[str]) -> tuple[list[list[str]], list[str]]:
    """Let choices pick variants; returns the picked ones, and the overrides that apply to all of them."""
    rest: list[str] = []
    for override in shared:
        key = key_of(override)
        values = {point[0].partition("=")[2] for point in expand([override])} if key in PICKING else set()
        if values and values <= {_choice(variant, key) for variant in listed}:
            listed = [variant for variant in listed if _choice(variant, key) in values]
        else:
            rest.append(override)
    return listed, rest


def _shipped_variants() -> dict[str, list[str]]:
    """Return the overrides of each variant of conf/main.yaml, by its name."""
    with initialized_hydra():
        shipped = compose("main", []).variants
        return {variant_name(compose("build", parse(entry)[1])): entry for entry in shipped}


def _choice(variant: list[str], key: str) -> str:
    """Return the option or value that a variant has for a key."""
    chosen = [override.partition("=")[2] for override in variant if key_of(override) == key]
    return chosen[-1] if chosen else _defaults()[key]


@cache
def _defaults() -> dict[str, str]:
    groups = yaml.safe_load((CONF / "build.yaml").read_text())["defaults"]
    chosen = {key: value for entry in groups if isinstance(entry, dict) for key, value in entry.items()}
    return chosen | {"interface": BuildConfig().interface}
