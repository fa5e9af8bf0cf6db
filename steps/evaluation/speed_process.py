"""The processes that speed.py measures in: one that has imported a mode's libraries, and a fork of it a model.

    python -m steps.evaluation.speed_process MODULE…

Reads requests from its standard input and writes replies to its standard output, each a JSON object on a line;
the first line says that the imports are done. It talks to no store: a model is a local folder. A fork costs
nothing, starts with no model's memory, and what happens to it happens to nobody else.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

WARM_UP_CALLS, MINIMUM_CALLS, MAXIMUM_CALLS = 2, 3, 1000
# A large model gives fewer answers than MINIMUM_CALLS rather than keep people for longer than this.
PATIENCE_SECONDS = 60
WEIGHTS = (".safetensors", ".onnx", ".data", ".bin")


def main() -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not stand between the replies
    for module in sys.argv[1:]:
        import_module(module)
    print("{}", file=replies)
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line))), file=replies)


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """What a fork says to a request, with `loads`: the seconds of loading the model, each time in a fork of its own."""
    said = in_a_fork(answer, request)
    if "load_seconds" not in said:
        return said
    # The first one is the measuring fork's, which may have read the files from the disk.
    first = said.pop("load_seconds")
    alone = [in_a_fork(answer, {"path": path}) for path in _enough([request["path"]], request["seconds"])]
    return said | {"loads": [first, *(one["load_seconds"] for one in alone if "load_seconds" in one)]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The machine's facts for an empty request, the seconds of loading for one of a path alone, else `measure`."""
    if not request:
        from steps.evaluation import machine

        return machine.facts()
    return {"load_seconds": _loaded(request["path"])[1]} if request.keys() == {"path"} else measure(request)


def in_a_fork(work: Callable[[dict], dict], request: dict[str, Any]) -> dict[str, Any]:
    """The result of `work` in a process of its own; what ended it instead stands under `fault`."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sending, work, request))
    process.start()
    sending.close()
    try:
        content = json.loads(receiving.recv_bytes())
    except EOFError:
        content = {}
    process.join()
    return content or {"fault": f"its process ended with {_ending(process.exitcode)}"}


def _tell(pipe: Any, work: Callable[[dict], dict], request: dict[str, Any]) -> None:
    try:
        content = work(request)
    except Exception as error:
        content = {"fault": f"{type(error).__name__}: {error}"}
    pipe.send_bytes(json.dumps(content).encode())


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load a model and ask it: every latency in seconds with the tokens that came, and the memory it took.

    `request` holds `path`, `mode`, `interface`, `rows` (what predict takes), `batch_size`, `max_tokens` (a cap on each
    completion) and `seconds` (how long each of the three kinds of calls goes on at least three times).
    """
    model, load_seconds = _loaded(request["path"])
    asking = Asking(model, request)
    rows, seconds = request["rows"], request["seconds"]
    batch = [rows[index % len(rows)] for index in range(request["batch_size"])]
    for calls in [*([row] for row in rows[:WARM_UP_CALLS]), *([batch] if asking.takes_batches else [])]:
        asking.tokens(calls)
    single = [_timed(asking.tokens, [row]) for row in _enough(rows, seconds)]
    first = [_timed(asking.first_token, row) for row in _enough(rows if asking.can_stop_early else [], seconds / 4)]
    batched = [_timed(asking.tokens, given) for given in _enough([batch] if asking.takes_batches else [], seconds)]
    return {
        "load_seconds": load_seconds,
        "single": single,
        "first_token": [latency for latency, _ in first],
        "batched": batched or single,
        "weights_bytes": _weights_bytes(Path(request["path"])),
        "peak_bytes": _peak_bytes(),
        "gpu_peak_bytes": _gpu_peak_bytes(),
    }


def _loaded(path: str) -> tuple[Any, float]:
    import mlflow.pyfunc

    started = perf_counter()
    model = mlflow.pyfunc.load_model(path)
    return model, perf_counter() - started


class Asking:
    """Calls of a loaded model, as its mode and interface take them."""

    def __init__(self, model: Any, request: dict[str, Any]):
        self._model, self._interface, self._cap = model, request["interface"], request["max_tokens"]
        stock = request["mode"] == "transformers"
        self._streams, self.takes_batches = not stock, not stock
        # With a prompt the stock flavour takes no settings of a call.
        self._takes_settings = self.can_stop_early = not stock or self._interface == "chat"
        if self._interface == "prompt":
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(next(Path(request["path"]).rglob("tokenizer.json"))))

    def tokens(self, rows: list[dict[str, Any]]) -> int:
        """Answer rows in one call; returns the tokens of all completions, the end tokens too."""
        import pandas as pd

        rows, keywords = self._given(rows, self._cap)
        reply = self._model.predict(rows[0] if len(rows) == 1 else pd.DataFrame(rows), **keywords)
        return sum(self._count(one) for one in (reply if isinstance(reply, list) else [reply]))

    def first_token(self, row: dict[str, Any]) -> int:
        """Return as soon as the first text of a stream is there, or else when a call for one token is over."""
        if not self._streams:
            (row,), keywords = self._given([row], 1)
            self._model.predict(row, **keywords)
            return 1
        (row,), keywords = self._given([row], self._cap)
        pieces = self._model.predict_stream(row, **keywords)
        next((piece for piece in pieces if self._text_of(piece)), None)
        pieces.close()
        return 1

    def _given(self, rows: list[dict[str, Any]], cap: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        if not self._takes_settings:
            return rows, {}
        if self._interface == "chat":
            return [row | {"max_tokens": cap} for row in rows], {}
        return rows, {"params": {"max_tokens": cap}}

    def _count(self, reply: Any) -> int:
        if self._interface == "chat":
            return reply["usage"]["completion_tokens"]
        seen = len(self._tokenizer.encode(reply, add_special_tokens=False).ids)
        return seen + (seen < self._cap)  # shorter than the cap: an end token came last

    def _text_of(self, piece: Any) -> str:
        return piece["choices"][0]["delta"].get("content", "") if self._interface == "chat" else piece


def _timed(call: Callable[[Any], int], given: Any) -> tuple[float, int]:
    started = perf_counter()
    tokens = call(given)
    return perf_counter() - started, tokens


def _enough(items: list[Any], seconds: float) -> Iterator[Any]:
    """Go round the items until the time is up, but a few times at least; of no items none."""
    started = perf_counter()
    for index in range(MAXIMUM_CALLS if items else 0):
        passed = perf_counter() - started
        if index and passed > (seconds if index >= MINIMUM_CALLS else PATIENCE_SECONDS):
            return
        yield items[index % len(items)]


def _weights_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.suffix in WEIGHTS)


def _peak_bytes() -> int:
    """The most memory that this process held at once (resident), the imported libraries included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_peak_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
