"""A served model: what HTTP costs in comparison with the bare engine, and what many clients get at once."""

from __future__ import annotations

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
        try:
            with served(str(place.model(*overrides)), get_interface("chat"), START_SECONDS) as server:
                yield from _compare(place, overrides, server.address)
        except (NotLoaded, NotServed) as error:
            raise StepError(f"A model could not be served: {error}.") from error


def _compare(place: Place, overrides: tuple[str, ...], address: str) -> Iterator[Comparison]:
    """Yield the served model against its engine by the number of clients, then all clients against one."""
    name, over_http = f"{short_name(overrides)} served", partial(_ask, place, address)
    with place.loaded(*overrides) as loaded:
        bare = partial(answer, place, loaded.unwrap_python_model().scheduler, 1)
        for clients in CLIENTS:
            yield Comparison(
                Side(f"{name}, {_clients(clients)}", partial(_rate, place, over_http, clients)),
                Side("its engine", partial(_rate, place, bare, clients)),
            )
        most = CLIENTS[-1]
        yield Comparison(
            Side(f"{name}, {_clients(most)}", partial(_rate, place, over_http, most)),
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
