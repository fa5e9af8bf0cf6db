"""Run a step with what the command line says: once, or once for each point of a sweep."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steps.command_line import launching
from steps.command_line.composition import check, compose
from steps.command_line.hydra_schemas import store_schemas
from steps.command_line.overrides import expand, parse
from steps.command_line.variant_name import variant_name
from steps.config.launch import Launcher
from steps.config.paths import CONF
from steps.config.schema import BuildConfig, MainConfig, RegisterConfig
from steps.config.serve import ServeConfig
from steps.errors import StepError
from steps.interrupts import EXIT_CODE, INTERRUPTED, clean_end
from steps.output import lasting_output, signs_of_life
from steps.redaction import redacted
from steps.store import connection, orphans, runs

# Hydra would write folders and log lines of its own; here MLflow's store keeps everything.
QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
)


def run(step_name: str, step: Callable[[Any], Any], jobs: launching.Points | None = None) -> None:
    """Run a step as a command.

    Args:
        step_name: The step.
        step: Takes the typed configuration.
        jobs: Return the overrides of each job that a launcher can run before the step; None if it can run none.
    """
    exit_on_error(lambda: _run(step_name, step, jobs))


def exit_on_error(command: Callable[[], Any]) -> None:
    """Run a command. An error that the user can correct is printed as sentences, with an exit code and no traceback.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    with lasting_output(), signs_of_life(), clean_end():
        try:
            command()
        except (StepError, HydraException, OmegaConfBaseException, KeyboardInterrupt) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            code = _report(error)
            if not isinstance(error, KeyboardInterrupt):
                runs.describe_failure(Path(sys.argv[0]).stem, _sentences(error))
            sys.exit(code)


def _report(error: BaseException) -> int:
    """Print an error that the user can correct, or that Ctrl-C has ended the step; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr, flush=True)
        return EXIT_CODE
    for line in _sentences(error):
        print(f"error: {redacted(line)}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, StepError) else 1


def _sentences(error: BaseException) -> tuple[str, ...]:
    if isinstance(error, KeyboardInterrupt):
        return (INTERRUPTED,)
    return error.faults if isinstance(error, StepError) else (str(error).strip(),)


def _run(step_name: str, step: Callable[[Any], Any], jobs_of: launching.Points | None) -> None:
    flags, overrides = parse(sys.argv[1:])
    if flags:
        return run_with_hydra(step_name, step, overrides, flags)
    launcher = Launcher("none")
    if jobs_of:
        overrides, launcher = launching.split(overrides)
    jobs = expand(overrides)
    check(step_name, jobs)
    if jobs_of and launcher.package:
        return _launch(step_name, step, jobs, launcher, jobs_of)
    if len(jobs) == 1:
        return run_with_hydra(step_name, step, jobs[0])
    with connection.plain_errors():
        connection.connect()
    with connection.plain_errors(), runs.start(f"{step_name}-sweep"), TemporaryDirectory(prefix="phi3-") as folder:
        quiet = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
        run_with_hydra(step_name, step, [*quiet, *overrides], ["--multirun"])
    return None


def _launch(
    step_name: str, step: Callable[[Any], Any], jobs: list[list[str]], launcher: Launcher, jobs_of: launching.Points
) -> None:
    """Run the jobs of a step by a launcher. A step that has more to do than its jobs runs here afterwards."""
    with connection.plain_errors():
        connection.connect()
    with connection.plain_errors(), runs.start(f"{step_name}-sweep"):
        points = [[*job, *more] for job in jobs for more in jobs_of(compose(step_name, job))]
        outcomes = launching.launch(step_name, points, launcher)
        faults = [fault for outcome in outcomes for fault in outcome.faults]
        if points == jobs and faults:
            raise StepError(*faults)
        if points != jobs:
            # What a job has not done is done here, and reported as without a launcher.
            launching.echo_faults(step_name, outcomes)
            for job in jobs:
                run_with_hydra(step_name, step, job)


def run_with_hydra(step_name: str, step: Callable[[Any], Any], overrides: list[str], flags: Iterable[str] = ()) -> None:
    """Let Hydra compose the configuration and launch the step; raises StepError with the faults of all points."""
    store_schemas()
    failures: list[StepError] = []

    def task(config: DictConfig) -> Any:
        try:
            with connection.plain_errors():
                typed: Any = OmegaConf.to_object(config)
                client, experiment = connection.connect(), runs.experiment_id()
                runs.name_project_run(_run_name(step_name, typed))
                if not _only_reads(typed):
                    connection.check_writable(client, experiment)
                    orphans.fail_orphans(client, experiment)
                return step(typed)
        except StepError as error:
            # The other points of a sweep go on; Hydra would print a line of its own.
            failures.append(error)

    argv, sys.argv = sys.argv, [sys.argv[0], *flags, *QUIET, *overrides]
    try:
        with _raising_hydra_errors():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=step_name)(task)()
    finally:
        sys.argv = argv
    if failures:
        worst = min(failures, key=lambda error: error.exit_code)  # 1 (failed) is worse than 3 (done with row errors)
        raise type(worst)(*(fault for error in failures for fault in error.faults)) from worst


def _run_name(step_name: str, config: Any) -> str:
    """Return a name for a run whose step has none of its own: it only reads, or fails early."""
    if isinstance(config, RegisterConfig) and _only_reads(config):
        return f"{config.action if config.action != 'promote' else step_name}{'-dry-run' if config.dry_run else ''}"
    return (
        f"{step_name}-{variant_name(config)}" if isinstance(config, BuildConfig) and step_name == "build" else step_name
    )


def _only_reads(config: Any) -> bool:
    """Return True if a step leaves the store as it is. In main, even a dry run builds and evaluates."""
    if isinstance(config, ServeConfig):
        return True
    is_register = isinstance(config, RegisterConfig) and not isinstance(config, MainConfig)
    return is_register and (config.dry_run or config.action == "history")


@contextlib.contextmanager
def _raising_hydra_errors() -> Iterator[None]:
    """Have Hydra raise its errors instead of printing them and ending the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
