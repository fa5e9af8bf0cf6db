"""Arguments as overrides in Hydra's language.

`mlflow run` passes on a parameter that MLproject does not declare as `--key value`, which Hydra refuses: it is
rewritten here. Free text arrives exactly as typed, and nothing in a value is ever resolved.
"""

import re
from collections.abc import Iterable

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from steps.command_line.hydra_schemas import initialized_hydra
from steps.config.marks import keys_with
from steps.config.paths import from_user
from steps.errors import StepError

# Hydra's own flags; everything else that begins with -- is a parameter of `mlflow run`.
FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")
# Accepted and not needed: a sweep in a value makes a multirun.
NEEDLESS = ("--multirun", "-m", "--run", "-r")
# Hydra has them, and they make no sense here: the configuration is in conf/, and `check` reads it there.
UNSUPPORTED = (
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--experimental-rerun", "--shell-completion", "-sc"),
)
# Keys below these are the user's to name.
OPEN_KEYS = ("promotion.limits",)
# Groups for which a user may give a file instead of an option.
IMPLIED_PATHS = {"prompt_set": "prompt_set.path"}
# Keys whose values are overrides themselves.
OVERRIDE_LISTS = ("variants",)


def parse(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into Hydra's flags and overrides; raises StepError for what is neither."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, separator, value = argument.partition("=")
        if argument in NEEDLESS:
            continue
        if flag in UNSUPPORTED:
            raise StepError(
                f"{flag} is a flag of Hydra that is not supported: the configuration is in conf/. Put a file of your "
                f"own there, or give its keys one by one: key=value. Got '{argument}'."
            )
        if argument in FLAGS:
            flags.append(argument)
        elif argument in FLAGS_WITH_VALUE:
            flags += [argument, next(rest, "")]
        elif separator and flag in FLAGS_WITH_VALUE:
            flags += [flag, value]
        elif argument.startswith("--") and "=" not in argument:
            overrides.append(_override(argument[2:], next(rest, "")))
        else:
            key, separator, value = argument.removeprefix("--").partition("=")
            if not key.strip("+~ ") or (not separator and not key.startswith("~")):
                raise StepError(f"Expected key=value, got '{argument}'.")
            overrides.append(_override(key, value) if separator else key)
    return flags, overrides


def expand(overrides: Iterable[str]) -> list[list[str]]:
    """Return every point of a sweep as a list of overrides; a later override of a key replaces an earlier one."""
    with initialized_hydra():
        return _expand(overrides)


def _expand(overrides: Iterable[str]) -> list[list[str]]:
    # `glob(*)` asks the loader for the options of a group.
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed: list[Override] = []
    faults: list[str] = []
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            faults.append(_unreadable(text))
        else:
            parsed.append(override)
            faults += _sweep_faults(override)
    if faults:
        raise StepError(*faults)
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    return jobs


def _unreadable(text: str) -> str:
    if re.search(r"=\s*[a-z]+\(\s*\)$", text):
        return f"'{text}' has no value: a sweep needs at least one between its brackets."
    return f"'{text}' cannot be read. Put the value in its own quotes: key=\"'a; b'\"."


def _sweep_faults(override: Override) -> list[str]:
    """Return a sentence about a sweep that has no points."""
    if not override.is_sweep_override():
        return []
    try:
        points = list(override.sweep_string_iterator())
    except HydraException as error:
        return [f"'{override.input_line}' cannot be swept: {error}."]
    if points:
        return []
    return [f"'{override.input_line}' has no value: a glob matches options of a group of conf/, and a range has steps."]


def key_of(override: str) -> str:
    """Return the configuration key that an override sets."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _override(key: str, value: str) -> str:
    """Return one override: free text quoted, a path absolute if it exists, interpolation refused elsewhere."""
    if key.lstrip("+") in IMPLIED_PATHS and _is_file(value):
        key = IMPLIED_PATHS[key.lstrip("+")]
    if key.lstrip("+") in keys_with("is_path"):
        value = from_user(value)
    if key.lstrip("+") in keys_with("free_text"):
        return f"{key}={_quoted(value)}"
    if key.lstrip("+") in OVERRIDE_LISTS:
        return f"{key}={_quoted_lists(key, value)}"
    if "${" in value:
        raise StepError(f"{key} must be a plain value, got '{value}': nothing is resolved from a value.")
    if key.startswith(OPEN_KEYS):
        key = f"++{key}"
    return f"{key}={value}"


def _is_file(value: str) -> bool:
    """Return True if a value is the path of a file, or could be meant as one: no option has a dot or a slash."""
    return bool(re.fullmatch(r"[^,{}\[\]()]*[./][^,{}\[\]()]*", value)) and not value.startswith("${")


def _quoted_lists(key: str, text: str) -> str:
    """Return a list of lists of overrides, typed as conf/main.yaml has it, or names, in Hydra's grammar."""
    try:
        lists = yaml.safe_load(text)
    except yaml.YAMLError:
        lists = None
    if isinstance(lists, str) and lists.strip():
        lists = [name.strip() for name in lists.split(",")]
    if isinstance(lists, list):
        lists = [[entry] if _is_text(entry) and "=" not in entry else entry for entry in lists]
    if not isinstance(lists, list) or not all(isinstance(entry, list) and all(map(_is_text, entry)) for entry in lists):
        raise StepError(
            f"{key} must be names such as onnx-int4-chat,pyfunc-fp32-chat, or a list of lists of overrides such as "
            f"[[mode=onnx], [mode=pyfunc]], got '{text}'."
        )
    return "[" + ",".join("[" + ",".join(map(_quoted, entry)) + "]" for entry in lists) + "]"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _quoted(text: str) -> str:
    """Return a text as a quoted string of Hydra's grammar that OmegaConf does not interpolate either."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
