"""A real `mlflow server` on a SQLite store; it can be killed and started again at the same address."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SECONDS = 300


class MlflowServer:
    """Serves `mlflow.db` of a folder, which it makes where there is none, and keeps artifacts beside it."""

    def __init__(self, folder: Path):
        self.folder, self._process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        self._command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        # Its jobs are five more processes, and nothing here has a job.
        kept |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self.folder, env=kept, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Return when it answers."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                said = (self.folder / "server.log").read_text()[-2000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)

    def kill(self) -> None:
        """End it with -9, if it is there."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, until the end of the block."""
    server = MlflowServer(folder)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
