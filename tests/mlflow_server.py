"""A real `mlflow server`, on a SQLite store by default. It can be killed and started again at the same address."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support import free_port

SECONDS = 300


class MlflowServer:
    """Serves a database, and passes artifacts on.

    Args:
        folder: Where it stands: for its log, `mlflow.db` and artifacts, if they are nowhere else.
        store: The address of another database.
        artifacts: The address of another place of artifacts.
        environment: What else the server has in its environment, and no client.
    """

    def __init__(self, folder: Path, store: str = "", artifacts: str = "", **environment: str):
        self.folder, self._environment, self._process = folder, environment, None
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        self._command += ["--backend-store-uri", store or f"sqlite:///{folder}/mlflow.db"]
        self._command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        # Its jobs would be five more processes, and nothing here has a job.
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment |= self._environment
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Return when it answers; fail with the end of its log if it does not."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                log = (self.folder / "server.log").read_text()[-2000:]
                assert self._process.poll() is None, log
                assert time.monotonic() < deadline, log
                time.sleep(0.1)

    def kill(self) -> None:
        """End it by kill -9 if it is running."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def running(folder: Path, store: str = "", artifacts: str = "", **environment: str) -> Iterator[MlflowServer]:
    """Run a server until the end of the block."""
    server = MlflowServer(folder, store, artifacts, **environment)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
