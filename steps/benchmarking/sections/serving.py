"""A served model: what HTTP costs in comparison with the bare engine, and what many clients get at once."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

from steps.benchmarking.comparison import Comparison, Side
from steps.benchmarking.place import Place, short_name
from steps.benchmarking.sections.engines import answer
from steps.errors import StepError
from steps.interfaces import get_interface
from steps.promotion.serving import REQUEST_SECONDS, NotLoaded, NotServed, served

CLIENTS = (1, 8, 16, 32)
REQUESTS = 2
# Reading the weights of the largest model takes a minute.
START_SECONDS = 300


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield the comparisons of each variant, while it is served.

    Raises:
        StepError: It cannot be served.
    """
    for overrides in place.variants:
        with _served(place, overrides) as over_http:
            yield from _against_its_engine(place, overrides, over_http)
            yield _against_one_client(place, overrides, over_http)
    if place.device == "cpu":
        # The fastest one with four bits in batches.
        overrides = ("mode=openvino", "precision=int4")
        with _served(place, overrides) as over_http:
            yield _against_one_client(place, overrides, over_http)


@contextlib.contextmanager
def _served(place: Place, overrides: tuple[str, ...]) -> Iterator[Callable[[], object]]:
    """Serve a variant for the block, which gets a function that sends one request."""
    try:
        with served(str(place.model(*overrides)), get_interface("chat"), START_SECONDS) as server:
            yield partial(_ask, place, server.address)
    except (NotLoaded, NotServed) as error:
        raise StepError(f"A model could not be served: {error}.") from error


def _against_its_engine(
    place: Place, overrides: tuple[str, ...], over_http: Callable[[], object]
) -> Iterator[Comparison]:
    """Yield the served model against its engine, by the number of clients."""
    with place.loaded(*overrides) as loaded:
        bare = partial(answer, place, loaded.unwrap_python_model().scheduler, 1)
        for clients in CLIENTS:
            yield Comparison(
                _side(place, overrides, over_http, clients), Side("its engine", partial(_rate, place, bare, clients))
            )


def _against_one_client(place: Place, overrides: tuple[str, ...], over_http: Callable[[], object]) -> Comparison:
    """Return all clients of a served model against one."""
    ours = _side(place, overrides, over_http, CLIENTS[-1])
    return Comparison(ours, Side("1 client", partial(_rate, place, over_http, 1)))


def _side(place: Place, overrides: tuple[str, ...], over_http: Callable[[], object], clients: int) -> Side:
    """Return the measurement of a served variant."""
    return Side(f"{short_name(overrides)} served, {_clients(clients)}", partial(_rate, place, over_http, clients))


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


def _ask(place: Place, address: str) -> None:
    (text,) = place.texts(1)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": place.size.tokens}
    url, kind = f"{address}/v1/chat/completions", {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), kind)
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as reply:
            tokens = json.load(reply)["usage"]["completion_tokens"]
    except OSError as error:
        raise StepError(f"the server has not answered: {error}") from error
    if tokens != place.size.tokens:
        raise StepError(f"a reply has {tokens} tokens instead of {place.size.tokens}")
