"""The processes that speed.py measures in: one that has imported a mode's libraries, and a fork of it for each model.

    python -m steps.evaluation.speed_process MODULE…

Reads requests from standard input and writes replies to standard output, each a JSON object on a line. The first line
says that the imports are done. It uses no store: a model is a local folder. A fork costs nothing and starts without
any model's memory, and a fork that fails harms no other.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from steps.evaluation.asking import Asker
from steps.interfaces import get_interface
from steps.interfaces.interface import Question
from steps.modes import get_mode

Item = TypeVar("Item")
WARM_UP_CALLS, MINIMUM_CALLS, MAXIMUM_CALLS = 2, 3, 1000
# A large model gives fewer than MINIMUM_CALLS answers rather than take longer than this.
PATIENCE_SECONDS = 60
WEIGHTS = (".safetensors", ".onnx", ".data", ".bin", ".gguf", ".weights")


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
    """Return a fork's answer to a request, with `loads`: seconds to load the model, each in its own fork."""
    content = in_a_fork(answer, request)
    if "load_seconds" not in content:
        return content
    # The first is the measuring fork's own, which may have read the files from the disk.
    first = content.pop("load_seconds")
    others = [in_a_fork(answer, {"path": path}) for path in _cycle([request["path"]], request["seconds"])]
    return content | {"loads": [first, *(other["load_seconds"] for other in others if "load_seconds" in other)]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return facts about the machine for an empty request, load time for a path alone, otherwise `measure`."""
    if not request:
        from steps.evaluation import machine

        return machine.facts()
    return {"load_seconds": _load(request["path"])[1]} if request.keys() == {"path"} else measure(request)


def in_a_fork(work: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `work` in its own process. If it fails, `fault` says how it ended."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sending, work, request))
    process.start()
    sending.close()
    try:
        content: dict[str, Any] = json.loads(receiving.recv_bytes())
    except EOFError:
        content = {}
    process.join()
    return content or {"fault": f"its process ended with {_ending(process.exitcode or 0)}"}


def _send_result(pipe: Connection, work: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> None:
    try:
        content = work(request)
    except Exception as error:
        content = {"fault": f"{type(error).__name__}: {error}"}
    pipe.send_bytes(json.dumps(content).encode())


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load a model and time its answers.

    Args:
        request: `path`, `mode`, `interface`, `questions`, `batch_size`, `max_tokens` (the cap on each answer) and
            `seconds` (how long each of the three kinds of calls goes on, at least three times).

    Returns:
        Seconds and tokens of every call, and the memory that the process took in bytes.
    """
    model, load_seconds = _load(request["path"])
    mode, interface = get_mode(request["mode"]), get_interface(request["interface"])
    asker = Asker(model, mode, interface, _token_counter(Path(request["path"])))
    cap, seconds = {"max_tokens": request["max_tokens"]}, request["seconds"]
    questions = [replace(Question(**fields), settings=cap) for fields in request["questions"]]
    batch = [questions[index % len(questions)] for index in range(request["batch_size"])]
    batches = [batch] if mode.batches else []
    for warm_up in [*([question] for question in questions[:WARM_UP_CALLS]), *batches]:
        asker.ask(warm_up)
    single = [_timed(asker, [question]) for question in _cycle(questions, seconds)]
    # Without settings a call cannot stop after one token.
    stoppable = questions if asker.takes_settings else []
    first = [_time_to_first_token(asker, mode.streams, question) for question in _cycle(stoppable, seconds / 4)]
    batched = [_timed(asker, questions) for questions in _cycle(batches, seconds)]
    return {
        "load_seconds": load_seconds,
        "single": single,
        "first_token": first,
        "batched": batched or single,
        "weights_bytes": _weights_bytes(Path(request["path"])),
        "peak_bytes": peak_bytes(),
        "gpu_peak_bytes": _gpu_peak_bytes(),
    }


def _load(path: str) -> tuple[Any, float]:
    import mlflow.pyfunc

    started = perf_counter()
    model = mlflow.pyfunc.load_model(path)
    return model, perf_counter() - started


def _token_counter(path: Path) -> Callable[[str], int]:
    """Return a counter of the tokens of a text, for replies that do not hold their number.

    It loads the tokenizer when it is first called: for other replies the tokenizer would only take memory.
    """

    @cache
    def tokenizer() -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(next(path.rglob("tokenizer.json"))))

    return lambda text: len(tokenizer().encode(text, add_special_tokens=False).ids)


def _timed(asker: Asker, questions: Sequence[Question]) -> tuple[float, int]:
    """Return the seconds of a call and the tokens of all its answers."""
    replies = asker.ask(questions)
    seconds = sum(reply.seconds or 0 for reply in replies)
    return seconds, sum(reply.completion_tokens or 0 for reply in replies)


def _time_to_first_token(asker: Asker, streams: bool, question: Question) -> float:
    """Return the seconds until the first text of a stream, or until a call for one token returns."""
    started = perf_counter()
    if not streams:
        asker.ask([replace(question, settings={"max_tokens": 1})])
        return perf_counter() - started
    pieces = asker.stream(question)
    next(filter(None, pieces), None)
    seconds = perf_counter() - started
    pieces.close()
    return seconds


def _cycle(items: Sequence[Item], seconds: float) -> Iterator[Item]:
    """Yield the items round and round until the time is up, but at least MINIMUM_CALLS; nothing if there are none."""
    started = perf_counter()
    for index in range(MAXIMUM_CALLS if items else 0):
        passed = perf_counter() - started
        if index and passed > (seconds if index >= MINIMUM_CALLS else PATIENCE_SECONDS):
            return
        yield items[index % len(items)]


def _weights_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.suffix in WEIGHTS)


def peak_bytes() -> int:
    """Return the most resident memory that this process has held, imported libraries included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu_peak_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
