"""Arguments as overrides in Hydra's language.

`mlflow run` passes on a parameter that MLproject does not declare as `--key value`, which Hydra refuses: it is
rewritten here. Free text arrives exactly as typed, and nothing in a value is ever resolved.
"""

import re
from collections.abc import Iterable

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from steps.config.marks import keys_with
from steps.config.paths import from_user
from steps.errors import StepError

# Hydra's own flags; everything else that begins with -- is a parameter of `mlflow run`.
FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")
# Accepted and not needed: a sweep in a value makes a multirun.
MULTIRUN = ("--multirun", "-m")
# Keys below these are the user's to name.
OPEN_KEYS = ("promotion.limits",)


def parse(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into Hydra's flags and overrides; raises StepError for what is neither."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in MULTIRUN:
            continue
        if argument in FLAGS:
            flags.append(argument)
        elif argument in FLAGS_WITH_VALUE:
            flags += [argument, next(rest, "")]
        elif argument.startswith("--") and "=" not in argument:
            overrides.append(_override(argument[2:], next(rest, "")))
        else:
            key, separator, value = argument.removeprefix("--").partition("=")
            if not separator and not key.startswith("~"):
                raise StepError(f"Expected key=value, got '{argument}'.")
            overrides.append(_override(key, value) if separator else key)
    return flags, overrides


def expand(overrides: Iterable[str]) -> list[list[str]]:
    """Return every point of a sweep as a list of overrides; a later override of a key replaces an earlier one."""
    parser, parsed, unreadable = OverridesParser.create(), [], []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException:
            unreadable.append(f"'{override}' cannot be read. Put the value in its own quotes: key=\"'a; b'\".")
    if unreadable:
        raise StepError(*unreadable)
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    return jobs


def key_of(override: str) -> str:
    """Return the configuration key that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _override(key: str, value: str) -> str:
    """Return one override: free text quoted, a path absolute if it exists, interpolation refused elsewhere."""
    if key.lstrip("+") in keys_with("is_path"):
        value = from_user(value)
    if key.lstrip("+") in keys_with("free_text"):
        return f"{key}={_quoted(value)}"
    if "${" in value:
        raise StepError(f"{key} must be a plain value, got '{value}': nothing is resolved from a value.")
    if key.startswith(OPEN_KEYS):
        key = f"++{key}"
    return f"{key}={value}"


def _quoted(text: str) -> str:
    """Return a text as a quoted string of Hydra's grammar that OmegaConf does not interpolate either."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
