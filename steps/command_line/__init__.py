"""From the command line to a step: `-P key=value` and `key=value` are Hydra overrides.

`mlflow run` hands a parameter that MLproject does not declare on as `--key value`, which Hydra refuses:
it is rewritten here. A value with a sweep (`mode=pyfunc,onnx`) becomes a multirun. Free text arrives as
it was typed, and nothing in a value is ever resolved. Every key and value is checked before a step
starts, and all faults are told at once.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steps.config.paths import CONF
from steps.config.schema import free_text_keys, store_schemas
from steps.config.validation import faults
from steps.errors import StepError, unknown
from steps.redaction import redacted
from steps.store import connection, orphans, runs

# Hydra's own flags; everything else that begins with -- is a parameter of `mlflow run`.
FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i")
MULTIRUN = ("--multirun", "-m")  # accepted, but a sweep says it already
# Hydra would write folders and log lines of its own; MLflow's store is the memory here.
QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
)
# Keys below these are the user's to name.
OPEN_KEYS = ("promotion.limits",)


def run(step_name: str, step: Callable[[Any], Any]) -> None:
    """Run a step with what the command line says: once, or once for each point of a sweep."""
    guarded(lambda: _run(step_name, step))


def guarded(command: Callable[[], Any]) -> None:
    """Run a command; what the user can mend ends in plain sentences and an exit code.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    try:
        command()
    except (StepError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        for line in error.faults if isinstance(error, StepError) else [str(error).strip()]:
            print(f"error: {redacted(line)}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code if isinstance(error, StepError) else 1)


def _run(step_name: str, step: Callable[[Any], Any]) -> None:
    flags, overrides = parse(sys.argv[1:])
    if flags:
        return hand_to_hydra(step_name, step, overrides, flags)
    jobs = expand(overrides)
    check(step_name, jobs)
    if len(jobs) == 1:
        return hand_to_hydra(step_name, step, overrides)
    with connection.plain_errors():
        connection.connect()
    with connection.plain_errors(), runs.start(f"{step_name}-sweep"), TemporaryDirectory(prefix="phi3-") as folder:
        quiet = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
        hand_to_hydra(step_name, step, [*quiet, *overrides], ["--multirun"])


def hand_to_hydra(step_name: str, step: Callable[[Any], Any], overrides: list[str], flags: Iterable[str] = ()) -> None:
    """Let Hydra compose and launch; its errors come through whole, to be told in our words."""
    store_schemas()
    failures: list[StepError] = []

    def task(config: DictConfig) -> Any:
        try:
            with connection.plain_errors():
                orphans.fail_orphans(connection.connect(), runs.experiment_id())
                return step(OmegaConf.to_object(config))
        except StepError as error:
            # The other points of a sweep go on; Hydra would print a line of its own.
            failures.append(error)

    argv, sys.argv = sys.argv, [sys.argv[0], *flags, *QUIET, *overrides]
    try:
        with _full_errors():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=step_name)(task)()
    finally:
        sys.argv = argv
    if failures:
        worst = min(failures, key=lambda error: error.exit_code)  # 1, failed, is worse than 3, done with row errors
        raise type(worst)(*(fault for error in failures for fault in error.faults)) from worst


@contextlib.contextmanager
def _full_errors() -> Iterator[None]:
    """Have Hydra raise its errors instead of printing them and ending the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def parse(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Sort a command line into Hydra's flags and overrides in Hydra's language."""
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
    """Every point of a sweep as a list of overrides; a later override of a key replaces the earlier."""
    parser, parsed, unread = OverridesParser.create(), [], []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException:
            unread.append(f"'{override}' cannot be read: put the value in quotes of its own, as in key=\"'a; b'\".")
    if unread:
        raise StepError(*unread)
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def compose(step_name: str, overrides: list[str]) -> Any:
    """The typed configuration of a step."""
    with _hydra():
        return OmegaConf.to_object(hydra.compose(step_name, overrides))


def check(step_name: str, jobs: list[list[str]]) -> None:
    """Check every key and value of every job; all faults together are one StepError."""
    found: dict[str, None] = {}  # an ordered set: points of a sweep share most of their faults
    with _hydra():
        overrides = dict.fromkeys(override for job in jobs for override in job)
        keys = _known_keys(step_name)
        for override in overrides:
            found |= dict.fromkeys(_override_faults(step_name, override, keys))
        for job in [] if found else jobs:
            found |= dict.fromkeys(faults(compose(step_name, job)))
    if found:
        raise StepError(*found)


def key_of(override: str) -> str:
    """The configuration key that an override is about."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def to_yaml(config: Any) -> str:
    """A typed configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _override(key: str, value: str) -> str:
    """One override in Hydra's language: free text quoted, interpolation refused elsewhere."""
    if key.lstrip("+") in free_text_keys():
        return f"{key}={_quoted(value)}"
    if "${" in value:
        raise StepError(f"{key} must be a plain value, got '{value}': nothing is resolved from a value.")
    if key.startswith(OPEN_KEYS):
        key = f"++{key}"
    return f"{key}={value}"


def _quoted(text: str) -> str:
    """A text as a quoted string of Hydra's grammar that OmegaConf does not interpolate either."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    """Have Hydra initialised for composing, whether or not it runs already."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    store_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _options(key: str) -> list[str]:
    """The options of a configuration group; none if there is no such group."""
    loader = GlobalHydra.instance().config_loader()
    return loader.get_group_options(key) if "." not in key else []


def _known_keys(step_name: str) -> list[str]:
    """Every dotted key of a step's configuration."""
    return list(_dotted(OmegaConf.to_container(hydra.compose(step_name), throw_on_missing=False)))


def _dotted(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _override_faults(step_name: str, override: str, keys: list[str]) -> Iterator[str]:
    """What is wrong with one override by itself: its key, its option, its type."""
    key, value = key_of(override), override.partition("=")[2]
    if key.startswith("hydra"):
        return
    if key not in keys and not key.startswith(OPEN_KEYS):
        yield f"{unknown('key', key, _near_keys(key, keys))} Got {override.lstrip('+~')}."
    elif (options := _options(key)) and value not in options:
        yield unknown(key, value, options)
    else:
        try:
            hydra.compose(step_name, [override])
        except (HydraException, OmegaConfBaseException) as error:
            yield f"{key}: {_one_line(error.__cause__ or error)}."


def _near_keys(key: str, keys: list[str]) -> list[str]:
    """The keys beside the one that was meant, or the topmost keys."""
    parent = key.rpartition(".")[0]
    if parent in keys:
        return [known for known in keys if known.rpartition(".")[0] == parent]
    return [known for known in keys if "." not in known]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n    full_key:")[0].split())
