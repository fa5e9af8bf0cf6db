"""Serve a registered version with `mlflow models serve`, as users do, and ask it over HTTP.

The server runs in a fresh process outside of the project's directory. It ends with the process that started it,
however that ends (watcher.py).
"""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steps.interfaces.interface import Interface
from steps.redaction import redacted
from steps.store.child_process import child_environment

if TYPE_CHECKING:
    from requests import Session

WATCHER = Path(__file__).with_name("watcher.py")
REQUEST_SECONDS = 300
# The last line of a server that had no disk space, memory or port, or was killed.
MACHINE_FAULT = re.compile(r"No space left|[Cc]annot allocate memory|MemoryError|address already in use|exit code: -\d")


class NotServed(Exception):
    """The machine could not serve the model; the message says why. It says nothing about the model."""


class NotUp(NotServed):
    """The server has not answered in time."""


class NotLoaded(Exception):
    """The model cannot be loaded; the message has the server's last line."""


class Served:
    """A client of a served model, with the `predict` of a loaded one.

    Args:
        port: The server's port on this machine. `address` has it too.
        interface: What requests and replies look like.
        session: Sends the requests; by default one that ignores proxies.
    """

    def __init__(self, port: int, interface: Interface, session: "Session | None" = None) -> None:
        import requests

        self.address, self._interface = f"http://127.0.0.1:{port}", interface
        self._session = session or requests.Session()
        # A proxy cannot reach this machine's own address.
        self._session.trust_env = False

    def is_up(self) -> bool:
        """Return True if the server answers."""
        import requests

        with contextlib.suppress(requests.RequestException):
            return self._session.get(f"{self.address}/ping", timeout=5).status_code == 200
        return False

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer one request (an object) or several (a frame).

        Raises:
            MlflowException: The model refused the request (HTTP 400).
            NotServed: The server did not answer.
        """
        import requests
        from mlflow.exceptions import MlflowException

        if not isinstance(data, dict):
            data = {"inputs": [_without_nan(row) for row in data.to_dict("records")]}
        elif self._interface.task is None:
            # The server takes a bare object only in MLflow's own schemas.
            data = {"inputs": data}
        body = data | ({"params": params} if params else {})
        try:
            reply = self._session.post(f"{self.address}/invocations", json=body, timeout=REQUEST_SECONDS)
        except requests.RequestException as error:
            raise NotServed(f"the served model stopped answering ({type(error).__name__})") from error
        if reply.status_code == 400:
            raise MlflowException.invalid_parameter_value(reply.json()["message"])
        reply.raise_for_status()
        content = reply.json()
        return content["predictions"] if isinstance(content, dict) and "predictions" in content else content


@contextlib.contextmanager
def served(uri: str, interface: Interface, seconds: float) -> Iterator[Served]:
    """Serve a model during the block.

    Args:
        uri: The model's address in the registry, or its folder.
        interface: The interface of its variant.
        seconds: How long to wait until the server answers.

    Raises:
        NotLoaded: The model cannot be loaded.
        NotServed: The machine could not serve it; NotUp, if it was not up in time.
    """
    with TemporaryDirectory(prefix="phi3-smoke-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), _free_port()
        log = folder / "serve.log"
        with log.open("w") as output:
            watcher = subprocess.Popen(
                [sys.executable, str(WATCHER), *serve_command(uri, port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=_environment(folder),
                start_new_session=True,
            )
        try:
            with contextlib.closing(Served(port, interface)) as server:
                _wait_until_up(server, watcher, log, seconds)
                yield server
        finally:
            # Closes the watcher's standard input, which makes it stop the server.
            watcher.communicate()


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the server: without the API key of the user's own server, which it would demand."""
    environment = child_environment(folder) | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(REQUEST_SECONDS)}
    return {name: value for name, value in environment.items() if not name.startswith("PHI3_API_KEY")}


def serve_command(uri: str, port: int) -> list[str]:
    """Return the command that serves a version."""
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    return [*serve, "--port", str(port)]


def _wait_until_up(server: Served, watcher: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not server.is_up():
        if watcher.poll() is not None:
            last_line = _last_line(log)
            error = NotServed if MACHINE_FAULT.search(last_line) else NotLoaded
            raise error(f"it could not be served: {last_line}")
        if time.monotonic() > deadline:
            raise NotUp(f"it was not up within {seconds:g} seconds")
        time.sleep(0.2)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of a frame's row that hold a value: NaN differs from itself."""
    return {key: value for key, value in row.items() if value == value}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    """Return the last line of a server's log, without credentials."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return redacted(lines[-1][:300]) if lines else "it printed nothing"
    return "it printed nothing"
