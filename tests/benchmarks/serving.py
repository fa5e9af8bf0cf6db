"""What a served model stands, and what serving costs.

    python -m tests.benchmarks.serving fuzz --count 10000
    python -m tests.benchmarks.serving aliases --count 50
    python -m tests.benchmarks.serving schemas --count 1000
    python -m tests.benchmarks.serving throughput --rounds 3

- fuzz: random bodies to each route of a served model whose chat template takes tools. None may be a 5xx.
- aliases: moves of the alias under 16 streaming clients. No stream may fail, or have chunks of two versions.
- schemas: replies of a model with random weights to random schemas. Each must be valid. Then the cost of a token with
  and without a grammar.
- throughput: tokens/s and the time to the first token of /v1, of /invocations and of the bare engine, side by side.

Everything is made here, and nothing is downloaded. `--mode` chooses the engine. Each part takes minutes on 2 cores.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from steps import command_line
from steps.build import build
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel, MiniatureModel
from steps.store import connection
from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks.random_model import mixed_prompts, random_phi3, served, wait_for
from tests.benchmarks.random_requests import BASES, is_valid, random_body, random_schema
from tests.support import free_port

CHAT = "/v1/chat/completions"
DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64}
STREAMS, FUZZ_THREADS = 16, 16
# Counted as a failure of the server.
NO_REPLY = 599
CLIENTS, REQUESTS, NEW_TOKENS = (1, 8, 16, 32), 3, 32
TEMPLATE = Path(__file__).parents[1] / "wrappers" / "templates" / "phi4_mini.jinja"
PRECISIONS = {"onnx": "int4", "pyfunc": "fp32"}


def fuzz(folder: Path, mode: str, count: int, rounds: int) -> None:
    """Send random bodies, and print how many replies had which status."""
    checkpoint = folder / "checkpoint"
    shutil.copytree(resolve(MiniatureModel(name="miniature", seed=0)).directory, checkpoint)
    next(checkpoint.glob("*manifest.json")).unlink()
    shutil.copy(TEMPLATE, checkpoint / "chat_template.jinja")
    with served(checkpoint, mode, "fp32") as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for route in BASES:
            statuses = _statuses(client, route, count)
            failed = sum(number for status, number in statuses.items() if status >= 500)
            print(f"{mode} {route}: {count} bodies, {failed} x 5xx; {dict(sorted(statuses.items()))}", flush=True)


def _statuses(client: httpx.Client, route: str, count: int) -> collections.Counter[int]:
    def send(seed: int) -> int:
        body, headers = random_body(random.Random(seed), route)
        try:
            reply = client.post(route, content=body, headers=headers, timeout=120)
        except httpx.HTTPError as error:
            print(f"seed {seed}: {error!r} for {body[:600]!r}", flush=True)
            return NO_REPLY
        # An error in a stream comes after its status.
        in_stream = "text/event-stream" in reply.headers.get("content-type", "") and '"server_error"' in reply.text
        if reply.status_code >= 500 or in_stream:
            print(f"seed {seed}: {reply.status_code} {reply.text[:300]} for {body[:600]!r}", flush=True)
        return 500 if in_stream else reply.status_code

    with ThreadPoolExecutor(FUZZ_THREADS) as pool:
        return collections.Counter(pool.map(send, range(count)))


def aliases(folder: Path, mode: str, count: int, rounds: int) -> None:
    """Move the alias under streaming clients, and print how many streams failed or mixed two versions."""
    import mlflow

    for _ in range(2):
        model_id = build(command_line.compose("build", [f"mode={mode}", "force=true"]))
        mlflow.register_model(f"models:/{model_id}", "phi3")
    registry = mlflow.MlflowClient()
    registry.set_registered_model_alias("phi3", "champion", "1")
    with _following(folder) as address:
        results: list[tuple[bool, set[str]]] = []
        stop = threading.Event()
        clients = [threading.Thread(target=_stream_until, args=(address, stop, results)) for _ in range(STREAMS)]
        for client in clients:
            client.start()
        for move in range(count):
            version = str(2 - move % 2)
            registry.set_registered_model_alias("phi3", "champion", version)
            while _version(address) != f"phi3/{version}":
                time.sleep(0.05)
        stop.set()
        for client in clients:
            client.join()
    failed = sum(not whole for whole, _ in results)
    mixed = sum(len(versions) > 1 for _, versions in results)
    print(f"{mode}: {count} moves under {STREAMS} clients: {len(results)} streams, {failed} failed, {mixed} mixed")


@contextlib.contextmanager
def _following(folder: Path) -> Iterator[str]:
    """Run the step `serve` until the end of the block; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "steps.serve", f"port={port}", "follow=true", "poll_seconds=0.2"]
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        print(f"serve ended with exit code {server.wait(60)}")


def _version(address: str) -> str:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    return httpx.post(address + CHAT, json=body, timeout=120).json()["model"]


def _stream_until(address: str, stop: threading.Event, results: list[tuple[bool, set[str]]]) -> None:
    """Read one stream after the other; add whether each was whole, and the versions that its chunks named."""
    body = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}], "stream": True}
    body |= {"max_tokens": 60, "logit_bias": {"40": 100}}
    with httpx.Client(timeout=120) as client:
        while not stop.is_set():
            lines: list[str] = []
            with contextlib.suppress(httpx.HTTPError), client.stream("POST", address + CHAT, json=body) as reply:
                lines = [line[6:] for line in reply.iter_lines() if line]
            chunks = [json.loads(line) for line in lines if line.startswith("{")]
            reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk.get("choices", ())]
            results.append((lines[-1:] == ["[DONE]"] and "length" in reasons, {chunk.get("model") for chunk in chunks}))


def schemas(folder: Path, mode: str, count: int, rounds: int) -> None:
    """Answer under random schemas with random weights; print how many replies are valid, and what a token costs."""
    with _engine(random_phi3(folder / "checkpoint"), mode) as (scheduler, tokenizer):
        contract = Contract(INTERFACES["chat"], tokenizer, tokenizer.context_length, DEFAULTS)
        random_ones = [random_schema(random.Random(seed)) for seed in range(count)]
        sequences = [_masked(contract, schema, seed) for seed, schema in enumerate(random_ones)]
        scheduler.run(sequences)
        valid = sum(_is_valid(*pair) for pair in zip(sequences, random_ones, strict=True))
        tokens = sum(len(sequence.tokens) for sequence in sequences)
        print(f"{mode}: {count} random schemas: {valid} valid replies, {tokens} tokens", flush=True)
        costs = [_cost(scheduler, contract, masked) for _ in range(rounds + 1) for masked in (True, False)][2:]
        with_mask, without = (statistics.median(costs[start::2]) for start in (0, 1))
        size = tokenizer.vocabulary_size
        print(f"{mode}: {with_mask:.2f} ms a token with a grammar, {without:.2f} ms without ({size} tokens known)")


def _masked(contract: Contract, schema: dict, seed: int, **fields) -> Sequence:
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    row = {"messages": [{"role": "user", "content": "a"}], "response_format": shape, "max_tokens": 400}
    row |= {"temperature": seed % 2, "seed": seed} | fields
    (sequence,) = contract.request(row, None).sequences(contract.tokenizer)
    return sequence


def _is_valid(sequence: Sequence, schema: dict) -> bool:
    valid = sequence.finish_reason == "stop" and is_valid(json.loads(sequence.text), schema)
    if not valid:
        print(f"not valid ({sequence.finish_reason}): {sequence.text[:300]!r} under {json.dumps(schema)[:600]}")
    return valid


def _cost(scheduler: Scheduler, contract: Contract, masked: bool) -> float:
    """Return the milliseconds that a token takes in a full batch of 16 whose replies have 64 tokens."""
    schema = {"type": "string", "minLength": 200}
    if masked:
        sequences = [_masked(contract, schema, 0, max_tokens=64) for _ in range(16)]
    else:
        row = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 64}
        sequences = [contract.request(row, None).sequences(contract.tokenizer)[0] for _ in range(16)]
    started = time.perf_counter()
    scheduler.run(sequences)
    seconds = time.perf_counter() - started
    return seconds * 1000 / sum(len(sequence.tokens) for sequence in sequences)


@contextlib.contextmanager
def _engine(folder: Path, mode: str) -> Iterator[tuple[Scheduler, ChatTokenizer]]:
    """Yield a scheduler on the bare engine of a mode."""
    from steps.evaluation.asking import loaded

    overrides = ["model=local", f"model.path={folder}", f"mode={mode}", f"precision={PRECISIONS[mode]}"]
    model_id = build(command_line.compose("build", overrides), resolve(FolderModel(name="local", path=str(folder))))
    with loaded(f"models:/{model_id}") as model:
        yield model.unwrap_python_model().scheduler, ChatTokenizer(folder)


# Completes one prompt; returns the seconds to its first token, and its tokens.
Ask = Callable[[int], tuple[float, int]]


def throughput(folder: Path, mode: str, count: int, rounds: int) -> None:
    """Print tokens/s and the time to the first token by the number of clients."""
    checkpoint = random_phi3(folder / "checkpoint")
    table = Table(title=f"{mode} {PRECISIONS[mode]}, random Phi-3 of 154 M, {NEW_TOKENS} tokens, {rounds} round(s)")
    for column in ("clients", "side", "tokens/s", "first token p50 ms", "p95 ms"):
        table.add_column(column, justify="left" if column == "side" else "right")
    with _engine(checkpoint, mode) as (scheduler, tokenizer), served(checkpoint, mode, PRECISIONS[mode]) as port:
        sides = {
            "bare engine": _bare(scheduler, tokenizer),
            CHAT: _over_http(port, CHAT, tokenizer),
            "/invocations": _over_http(port, "/invocations", tokenizer),
        }
        for clients in CLIENTS:
            # One round more, which does not count.
            measured = [{side: _load(ask, clients) for side, ask in sides.items()} for _ in range(rounds + 1)][1:]
            for side in sides:
                rate = statistics.median(each[side][0] for each in measured)
                firsts = sorted(1000 * seconds for each in measured for seconds in each[side][1])
                p50, p95 = statistics.median(firsts), firsts[int(0.95 * (len(firsts) - 1))]
                table.add_row(str(clients), side, f"{rate:.0f}", f"{p50:.0f}", f"{p95:.0f}")
    Console(width=100).print(table)


def _load(ask: Ask, clients: int) -> tuple[float, list[float]]:
    """Return tokens/s of all clients together, and the seconds to each first token."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(ask, range(clients * REQUESTS)))
    return sum(tokens for _, tokens in results) / (time.perf_counter() - started), [first for first, _ in results]


def _bare(scheduler: Scheduler, tokenizer: ChatTokenizer) -> Ask:
    prompts = mixed_prompts(tokenizer)
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=NEW_TOKENS)

    def ask(index: int) -> tuple[float, int]:
        sequence = Sequence(prompts[index % len(prompts)], settings, tokenizer)
        scheduler.run([sequence])
        begun, first, _ = sequence.times
        return first - begun, len(sequence.tokens)

    return ask


def _over_http(port: int, route: str, tokenizer: ChatTokenizer) -> Ask:
    """Return what streams a chat of the same tokens; each chunk after the role is at least one token."""
    texts = [tokenizer.decode(prompt) for prompt in mixed_prompts(tokenizer)]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)

    def ask(index: int) -> tuple[float, int]:
        messages = [{"role": "user", "content": texts[index % len(texts)].strip()}]
        body = {"messages": messages, "max_tokens": NEW_TOKENS, "stream": True}
        started, first = time.perf_counter(), None
        with client.stream("POST", route, json=body) as reply:
            for line in reply.iter_lines():
                if first is None and '"content": "' in line and '"role"' not in line:
                    first = time.perf_counter() - started
        return first or time.perf_counter() - started, NEW_TOKENS

    return ask


PARTS = {"fuzz": fuzz, "aliases": aliases, "schemas": schemas, "throughput": throughput}


def main(part: str, mode: str, count: int, rounds: int) -> None:
    """Run one part in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        connection.connect()
        PARTS[part](Path(folder), mode, count, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--mode", choices=PRECISIONS, default="onnx")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.part, arguments.mode, arguments.count, arguments.rounds)
