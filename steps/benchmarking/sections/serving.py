"""A served model: what HTTP costs in comparison with the bare engine, and what many clients get at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place
from steps.benchmarking.sections.engines import answer
from steps.errors import StepError
from steps.output import activity

CLIENTS = (1, 8, 16, 32)
REQUESTS = 2
ROUTE = "/v1/chat/completions"
# Reading the weights of the largest model takes a minute.
START_SECONDS = 300
REPLY_SECONDS = 600


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield the served model against its engine by the number of clients, then all clients against one."""
    for overrides in place.variants:
        name = " ".join(word.partition("=")[2] for word in overrides[:2])
        with place.loaded(*overrides) as loaded, served(place, place.model(*overrides)) as port:
            scheduler = loaded.unwrap_python_model().scheduler
            bare = partial(answer, place, scheduler, 1)
            over_http = partial(_ask, place, port)
            for clients in CLIENTS:
                yield Comparison(
                    Side(f"{name} served, {_clients(clients)}", partial(_rate, place, over_http, clients)),
                    Side("its engine", partial(_rate, place, bare, clients)),
                )
            most = CLIENTS[-1]
            yield Comparison(
                Side(f"{name} served, {_clients(most)}", partial(_rate, place, over_http, most)),
                Side("1 client", partial(_rate, place, over_http, 1)),
            )


def _clients(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def _rate(place: Place, ask: Callable[[], object], clients: int) -> float:
    """Return tokens/s of all clients together. Each sends one request after the other."""
    requests = clients * REQUESTS
    started = perf_counter()
    pool = ThreadPoolExecutor(clients)
    try:
        for future in [pool.submit(ask) for _ in range(requests)]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return requests * place.size.tokens / (perf_counter() - started)


def _ask(place: Place, port: int) -> None:
    (text,) = place.texts(1)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": place.size.tokens}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{ROUTE}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=REPLY_SECONDS) as reply:
            tokens = json.load(reply)["usage"]["completion_tokens"]
    except OSError as error:
        raise StepError(f"the server has not answered: {error}") from error
    if tokens != place.size.tokens:
        raise StepError(f"a reply has {tokens} tokens instead of {place.size.tokens}")


@contextlib.contextmanager
def served(place: Place, model: Path) -> Iterator[int]:
    """Serve a model's folder with `mlflow models serve` until the end of the block; yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
    log = place.folder / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "-p", str(port)],
            env=place.environment(place.folder / "store")
            | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(REPLY_SECONDS)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with activity("starting the server"):
            _wait(server, f"http://127.0.0.1:{port}/ping", log)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise StepError(f"the server does not answer: {log.read_text()[-500:]}")
