"""A copy of the project, to type the commands of the README in."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from mlflow import MlflowClient

from tests.conftest import PROJECT
from tests.support import answers, wait_until

EXPERIMENT = "phi3"
NOT_COPIED = shutil.ignore_patterns(".git", "mlflow.db*", "mlruns", "__pycache__", ".*_cache", ".hypothesis", ".venv")


class Project:
    """A copy of the project, to type commands in.

    Attributes:
        first: The first main job.
    """

    first: subprocess.CompletedProcess

    def __init__(self, folder: Path, cache: Path):
        self.folder = shutil.copytree(PROJECT, folder, ignore=NOT_COPIED)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HYDRA_"))}
        self.environment = inherited | {
            "PHI3_CACHE_DIR": str(cache / "phi3"),
            "HF_HOME": str(cache / "hf"),
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
        }

    def type(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command in the project's directory."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run `mlflow run .` in the environment of the tests; it must succeed."""
        done = self.type("mlflow", "run", ".", "--env-manager", "local", *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    @contextlib.contextmanager
    def serving(self, command: str, port: int) -> Iterator[None]:
        """Run a command that serves, and wait until it answers; kill its processes at the end of the block."""
        with (self.folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
            try:
                wait_until(lambda: answers(f"http://127.0.0.1:{port}/ping"), 120, 0.5)
                yield
            finally:
                processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
                for process in processes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                server.wait()

    @contextlib.contextmanager
    def here(self, monkeypatch) -> Iterator[None]:
        """Change to the project's directory and store, to run a step in this process."""
        with monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder}/mlflow.db")
            patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            yield

    @property
    def client(self) -> MlflowClient:
        """A client of the project's store."""
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def runs(self) -> list:
        """Return all runs, oldest first."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))
