"""The smoke test of a registered version: served as users serve it, does it answer as it did when it was scored?

A fresh process outside of the project's directory loads the version from the registry and serves it with
`mlflow models serve`; a sample of the rows and the core checks of the contract are asked over HTTP.
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
from typing import Any

from steps.config.schema import Promotion
from steps.evaluation import contract, fit
from steps.evaluation.answers import asked_alone
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scorecard import Scorecard
from steps.redaction import redacted
from steps.store.child_process import child_environment
from steps.store.variants import Variant

WATCHER = Path(__file__).with_name("watcher.py")
REQUEST_SECONDS = 300
# What a server says last that had no room, no memory or no port, or was killed.
MACHINE = re.compile(r"No space left|[Cc]annot allocate memory|MemoryError|address already in use|exit code: -\d")


class NotServed(Exception):
    """The machine did not let it be served; the message says how. Of the model this says nothing."""


class NotLoaded(Exception):
    """The model cannot be loaded; the message is what the server said last."""


def fault(uri: str, variant: Variant, rows: PromptSet, card: Scorecard, promotion: Promotion) -> str | None:
    """Why a version must not be served, None if it may; the card has its answers to `rows`.

    Raises NotServed where that could not be found out.
    """
    recorded = _sample(rows, card, promotion.smoke_rows)
    try:
        with served(uri, promotion.smoke_seconds) as server:
            found = _answer_fault(server, variant, recorded)
            return found or _contract_fault(server, variant)
    except NotLoaded as error:
        return str(error)


class Served:
    """A served model, asked over HTTP in the place of a loaded one."""

    def __init__(self, port: int):
        import requests

        self._address = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy knows nothing of this machine

    def is_up(self) -> bool:
        import requests

        with contextlib.suppress(requests.RequestException):
            return self._session.get(f"{self._address}/ping", timeout=5).status_code == 200
        return False

    def close(self) -> None:
        self._session.close()

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """As the `predict` of a pyfunc model, refusals included."""
        if not isinstance(data, dict):
            data = {"inputs": [_given(row) for row in data.to_dict("records")]}
        elif "prompt" in data:
            data = {"inputs": data}
        reply = self._post(data | ({"params": params} if params else {}))
        return reply["predictions"] if isinstance(reply, dict) and "predictions" in reply else reply

    def _post(self, body: dict[str, Any]) -> Any:
        import requests
        from mlflow.exceptions import MlflowException

        try:
            reply = self._session.post(f"{self._address}/invocations", json=body, timeout=REQUEST_SECONDS)
        except requests.RequestException as error:
            raise NotServed(f"the served model went away when it was asked ({type(error).__name__})") from error
        if reply.status_code == 400:
            raise MlflowException.invalid_parameter_value(reply.json()["message"])
        reply.raise_for_status()
        return reply.json()


@contextlib.contextmanager
def served(uri: str, seconds: float) -> Iterator[Served]:
    """Serve a version until the end of the block, and no longer than this process lives."""
    with TemporaryDirectory(prefix="phi3-smoke-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), _free_port()
        log = folder / "serve.log"
        with log.open("w") as output:
            watcher = subprocess.Popen(
                [sys.executable, str(WATCHER), *_command(uri, port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=child_environment(folder) | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(REQUEST_SECONDS)},
                start_new_session=True,
            )
        try:
            with contextlib.closing(Served(port)) as server:
                _wait_until_up(server, watcher, log, seconds)
                yield server
        finally:
            watcher.stdin.close()
            watcher.wait()


def _command(uri: str, port: int) -> list[str]:
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    return [*serve, "--port", str(port)]


def _wait_until_up(server: Served, watcher: subprocess.Popen, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not server.is_up():
        if watcher.poll() is not None:
            said = _last_line(log)
            raise (NotServed if MACHINE.search(said) else NotLoaded)(f"it could not be served: {said}")
        if time.monotonic() > deadline:
            raise NotServed(f"it was not up within promotion.smoke_seconds={seconds:g}")
        time.sleep(0.2)


def _sample(rows: PromptSet, card: Scorecard, count: int) -> list[tuple[Row, str]]:
    """Rows from all over the prompt set that were asked one by one, as they are here, with their answers."""
    answered = [
        place for place in asked_alone(len(rows.rows)) if card.errors[place] is None and card.skipped[place] is None
    ]
    return [(rows.rows[place], card.answers[place]) for place in answered[:: max(1, len(answered) // count)][:count]]


def _answer_fault(server: Served, variant: Variant, recorded: list[tuple[Row, str]]) -> str | None:
    """The first row that is not answered, or by a greedy variant not as it is recorded."""
    greedy = float(variant.params["generation.temperature"]) == 0
    prompts = _prompts(variant, [row for row, _ in recorded])
    for row, before in recorded:
        try:
            now = _ask(server, row, prompts.get(row.id))
        except NotServed:
            raise
        except Exception as error:  # whatever it is, the row was not answered
            return f"row {row.id} was not answered: {type(error).__name__}: {str(error)[:200]}"
        if greedy and now != before:
            return f"row {row.id} was answered {before[:80]!r} when it was scored and {now[:80]!r} when it was served"
    return None


def _prompts(variant: Variant, rows: list[Row]) -> dict[str, str]:
    """The rows as texts, by id, where the variant takes prompts."""
    if variant.params["interface"] != "prompt":
        return {}
    turns = fit.fit(variant, PromptSet("sample", tuple(rows))).prompts
    return {row.id: turns.get(index, row.question) for index, row in enumerate(rows)}


def _ask(server: Served, row: Row, prompt: str | None) -> str:
    if prompt is not None:
        reply = _alone(server.predict({"prompt": prompt}))
    else:
        reply = _alone(server.predict({"messages": row.conversation}))["choices"][0]["message"]["content"]
    if not isinstance(reply, str):
        raise TypeError(f"the answer is no text but {type(reply).__name__}")
    return reply


def _contract_fault(server: Served, variant: Variant) -> str | None:
    """The core checks that the served model broke."""
    rows = contract.core(*(variant.params[name] for name in ("interface", "mode", "precision")))
    results = contract.run(server, variant.params["interface"], rows)
    broken = [f"'{result.name}' ({result.fault})" for result in results if result.fault]
    return f"it broke the contract: {', '.join(broken)}" if broken else None


def _alone(reply: Any) -> Any:
    """MLflow's stock flavour puts the one reply in a list."""
    return reply[0] if isinstance(reply, list) else reply


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a frame's row that hold a value."""
    return {key: value for key, value in row.items() if value == value}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _last_line(log: Path) -> str:
    """What the server said last, without the addresses of the store."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return redacted(lines[-1][:300]) if lines else "it said nothing"
    return "it said nothing"
