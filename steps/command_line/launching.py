"""Run jobs of a step at the same time, on this machine or others, by one of Hydra's launcher plugins.

    mlflow run . -e build -P mode=transformers,pyfunc,onnx -P launcher=joblib

A job is a list of overrides of build or evaluate. It works in a child run of the run that is active here, and reports
its faults as sentences. MLflow's store is the only thing that jobs share, so it has to be one that all of them reach.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from steps.checkpoints.cache import cache_directory
from steps.command_line.composition import check, compose
from steps.command_line.hydra_schemas import store_schemas
from steps.command_line.overrides import expand, key_of
from steps.config.launch import LaunchConfig, Launcher
from steps.config.paths import CONF, user_directory
from steps.errors import StepError, reason
from steps.output import echo, suppress_output
from steps.store import address, connection, orphans, runs

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.job.chdir=false")
# The only settings that travel. A node has its credentials in its own environment.
CARRIED = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "HF_HUB_OFFLINE", "HF_HOME", "OMP_NUM_THREADS")
# From a configuration to the overrides of each job, in addition to those of the configuration.
Points = Callable[[Any], list[list[str]]]
EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm"}


@dataclass(frozen=True)
class JobOutcome:
    """What a job reports: no faults, or its sentences and its exit code."""

    faults: tuple[str, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True)
class Job:
    """The function that a launcher calls in its workers.

    Attributes:
        step_name: The step, which is also the name of its function.
        environment: Settings that the worker's environment may lack.
    """

    step_name: str
    environment: dict[str, str]

    def __call__(self, config: DictConfig) -> JobOutcome:
        """Run the step; never raise, because a launcher would give up the other jobs."""
        os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ.update(self.environment)
        try:
            with connection.plain_errors():
                typed = OmegaConf.to_object(config)
                client, experiment = connection.connect(), runs.experiment_id()
                orphans.fail_orphans(client, experiment)
                getattr(import_module(f"steps.{self.step_name}"), self.step_name)(typed)
        except StepError as error:
            return JobOutcome(error.faults, error.exit_code)
        except Exception as error:  # whatever a library raises
            return JobOutcome((reason(error),), 1)
        return JobOutcome()


def split(overrides: Sequence[str]) -> tuple[list[str], Launcher]:
    """Split overrides into those of the step and the launcher that the others choose; raise StepError for faults."""
    words = [override for override in overrides if key_of(override).partition(".")[0] == "launcher"]
    points = expand(words)
    if len(points) > 1:
        raise StepError(f"launcher must be one launcher, got a sweep: {' '.join(words)}.")
    check("launch", points)
    config: LaunchConfig = compose("launch", points[0])
    launcher = config.launcher
    if launcher.package and not _is_installed(launcher.package):
        raise StepError(
            f"launcher={launcher.name} needs a package that is not installed here: "
            f"`pip install {launcher.package.replace('_', '-')}`, and then `--env-manager local`."
        )
    if fault := launcher.fault():
        raise StepError(fault)
    return [override for override in overrides if override not in words], launcher


def launch(step_name: str, points: list[list[str]], launcher: Launcher) -> list[JobOutcome]:
    """Run jobs as children of the active run; returns the outcome of each.

    Raises:
        StepError: The launcher itself failed, or lost a job for good. What is finished is in the store.
    """
    if not points:
        return []
    store_schemas()
    with TemporaryDirectory(prefix="phi3-jobs-") as folder:
        # The caller may run inside of a Hydra of its own.
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2(step_name, create_config_search_path(str(CONF)))
        try:
            words = [*QUIET, f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=.", *launcher.overrides()]
            config = hydra.compose_config(step_name, words, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
            plugin = Plugins.instance().instantiate_launcher(context, Job(step_name, _environment()), config)
            echo(f"Launching {len(points)} jobs with launcher={launcher.name}.")
            with suppress_output():
                try:
                    returns = plugin.launch([list(point) for point in points], initial_job_idx=0)
                finally:
                    launcher.release()
            return [job.return_value for job in returns]
        except Exception as error:  # anything of joblib, Ray, submitit or Slurm
            raise StepError(
                f"launcher={launcher.name} failed: {reason(error)}. Finished jobs are in the store: run the same "
                "command again to go on."
            ) from error
        finally:
            GlobalHydra.instance().hydra = outer
            # A job that was lost with its node has left an unfinished run, even if it was done again. If the store is
            # gone too, the launcher's own error says more.
            with contextlib.suppress(Exception):
                orphans.fail_orphans(connection.connect(), runs.experiment_id())


def echo_faults(step_name: str, outcomes: list[JobOutcome]) -> None:
    """Print why jobs failed that are tried again in this process."""
    for outcome in outcomes:
        for fault in outcome.faults:
            echo(f"A job of {step_name} failed: {fault} It is tried again here.")


def _is_installed(package: str) -> bool:
    # Without any plugin, the package of all plugins is missing too.
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{package}") is not None


def _environment() -> dict[str, str]:
    """Return the settings of a job: the store, the experiment, the parent run and the cache."""
    import mlflow

    uris = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    return {
        **{name: os.environ[name] for name in CARRIED if name in os.environ},
        **{name: address.absolute(uri, user_directory()) for name, uri in uris.items()},
        "MLFLOW_EXPERIMENT_ID": runs.experiment_id(),
        "PHI3_CACHE_DIR": str(Path(cache_directory()).absolute()),
        runs.PARENT: runs.active_run_id(),
    }
