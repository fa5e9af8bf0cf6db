"""Measure the wrappers side by side with what they are built on, and served with 8 clients and with one.

    python -m tests.benchmarks.wrappers
    python -m tests.benchmarks.wrappers onnx served --rounds 2

Makes a random Phi-3 of 154 M parameters (nothing is downloaded), runs every pair in turn for some rounds,
and prints medians and the ratio of each pair. Takes many minutes on 2 cores.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from steps import build, command_line
from steps.checkpoints import staging
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.schema import FolderModel, MiniatureModel
from steps.evaluation import answers
from steps.store import connection
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer

PARTS = ("torch", "onnx", "served")
PROMPTS, NEW_TOKENS, BATCH = 64, 32, 16
STOCK_PROMPTS = 8
CLIENTS, REQUESTS = 8, 4


def main(parts: list[str], rounds: int) -> None:
    """Run every pair of these parts and print the table."""
    table = Table(title=f"random Phi-3, {PROMPTS} prompts x {NEW_TOKENS} tokens, medians of {rounds} rounds")
    for column in ("ours", "tokens/s", "against", "tokens/s", "ratio"):
        table.add_column(column, justify="right" if column in ("tokens/s", "ratio") else "left")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        checkpoint = random_phi3(Path(folder) / "checkpoint")
        for names, pair in pairs(checkpoint, parts):
            ours, theirs = in_turn(*pair, rounds)
            table.add_row(names[0], f"{ours:.0f}", names[1], f"{theirs:.0f}", f"{ours / theirs:.2f}")
        served_modes = (("pyfunc", "fp32"), ("pyfunc", "bf16"), ("onnx", "fp32"), ("onnx", "int4"))
        for mode, precision in served_modes if "served" in parts else ():
            many, one = served(folder, mode, precision, rounds)
            table.add_row(
                f"served {mode} {precision}, {CLIENTS} clients",
                f"{many:.0f}",
                "1 client",
                f"{one:.0f}",
                f"{many / one:.2f}",
            )
    Console(width=110).print(table)


def random_phi3(folder: Path) -> Path:
    """A Phi-3 with random weights and the miniature's tokenizer, which never ends by itself."""
    import torch
    from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

    miniature = resolve(MiniatureModel(name="miniature", seed=0))
    tokenizer = AutoTokenizer.from_pretrained(miniature.directory)
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=512,
            original_max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    # The end token's row of the output layer is far below the others, so that every answer has its full length.
    with torch.no_grad():
        model.lm_head.weight[2] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs(folder: Path, parts: list[str]):
    """What is measured in this process: our way and the other one, each a function that returns tokens/s."""
    checkpoint = resolve(FolderModel(name="local", path=str(folder)))
    prompts = _prompts(ChatTokenizer(folder))
    if "torch" in parts:
        yield from _torch_pairs(folder, checkpoint, prompts)
    for precision in ("fp32", "int4") if "onnx" in parts else ():
        choice = command_line.compose(
            "build", ["model=local", f"model.path={folder}", "mode=onnx", f"precision={precision}"]
        )
        with staging.staged(checkpoint, choice) as exported:
            ours = _ours(Scheduler(OnnxEngine(str(exported), BATCH)), folder, prompts)
            bare = _bare_onnx(str(exported), prompts)
            yield (f"onnx engine, {precision}", "bare og.Engine loop"), (ours, bare)


def _torch_pairs(folder: Path, checkpoint: Checkpoint, prompts: list[list[int]]):
    import torch
    from transformers import AutoModelForCausalLM

    def engine(precision: str, batch: int) -> Callable[[], float]:
        return _ours(Scheduler(TorchEngine(str(folder), precision, batch, "cpu")), folder, prompts)

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        names = f"torch engine, {precision}, batches of {BATCH}", f"bare generate, {precision}, batches of {BATCH}"
        yield names, (engine(precision, BATCH), partial(_generate, model, prompts))
    words = ["model=local", f"model.path={folder}", f"generation.max_tokens={NEW_TOKENS}"]
    stock = build.build(command_line.compose("build", [*words, "mode=transformers", "precision=bf16"]), checkpoint)
    with answers.loaded(f"models:/{stock}") as loaded:
        for batch in (BATCH, PROMPTS):
            names = f"torch engine, bf16, batches of {batch}", "stock flavour, bf16, one prompt a call"
            yield names, (engine("bf16", batch), partial(_stock, loaded))


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Medians of two measurements taken in turn, after one round that does not count."""
    measured = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return tuple(statistics.median(column) for column in zip(*measured, strict=True))


def _prompts(tokenizer: ChatTokenizer) -> list[list[int]]:
    """Prompts of mixed length, as token ids."""
    words = ["the", "capital", "of", "Spain", "is", "Madrid", "and"]
    texts = [" ".join(words[: 1 + index % 7] * (1 + index % 5)) for index in range(PROMPTS)]
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]


def _ours(scheduler: Scheduler, folder: Path, prompts: list[list[int]]) -> Callable[[], float]:
    tokenizer = ChatTokenizer(folder)
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=NEW_TOKENS)

    def measure() -> float:
        sequences = [Sequence(prompt, settings, tokenizer) for prompt in prompts]
        started = time.perf_counter()
        scheduler.run(sequences)
        return sum(len(sequence.tokens) for sequence in sequences) / (time.perf_counter() - started)

    return measure


def _generate(model, prompts: list[list[int]]) -> float:
    """transformers' own generate over batches sorted by length, left-padded."""
    import torch

    ordered = sorted(prompts, key=len)
    started, tokens = time.perf_counter(), 0
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[3] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        tokens += out[:, width:].numel()
    return tokens / (time.perf_counter() - started)


def _stock(model) -> float:
    """As the upstream sample does: one conversation a call."""
    started, tokens = time.perf_counter(), 0
    for _ in range(STOCK_PROMPTS):
        (reply,) = model.predict({"messages": [{"role": "user", "content": "the capital of Spain is Madrid and"}]})
        tokens += reply["usage"]["completion_tokens"]
    return tokens / (time.perf_counter() - started)


def _bare_onnx(directory: str, prompts: list[list[int]]) -> Callable[[], float]:
    """The shortest loop over og.Engine, with as large a batch."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(directory)
    config.overlay(json.dumps({"engine": {"static_batching": {"max_batch_size": BATCH}}}))
    model = og.Model(config)
    engine = og.Engine(model)
    events = engine.create_event_buffer(64)

    def measure() -> float:
        started, tokens, requests = time.perf_counter(), 0, []
        for prompt in sorted(prompts, key=len):
            request = engine.create_request()
            options = og.TurnOptions(request)
            options.set_do_sample(False)
            options.set_max_generated_tokens(NEW_TOKENS)
            request.begin_turn(np.array(prompt, dtype=np.int32), options)
            requests.append(request)
        while engine.has_pending_requests():
            tokens += sum(bool(event.flags & og.EngineEventFlags.TOKEN) for event in engine.run(events))
        seconds = time.perf_counter() - started
        for request in requests:
            request.close()
        return tokens / seconds

    return measure


def served(folder: str, mode: str, precision: str, rounds: int) -> tuple[float, float]:
    """Tokens/s through `mlflow models serve` with many clients and with one, in turn."""
    overrides = ["model=local", f"model.path={folder}/checkpoint", f"mode={mode}", f"precision={precision}"]
    model_id = build.build(command_line.compose("build", overrides))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", f"models:/{model_id}", "--env-manager", "local", "-p", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping")
        return in_turn(lambda: _load(port, CLIENTS), lambda: _load(port, 1), rounds)
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait_for(address: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} did not come up")


def _load(port: int, clients: int) -> float:
    """Tokens/s of all clients together, each asking one request after the other."""

    def ask(_: int) -> int:
        body = {"messages": [{"role": "user", "content": "the capital of Spain"}], "max_tokens": NEW_TOKENS}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)["usage"]["completion_tokens"]

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(ask, range(clients * REQUESTS)))
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all where none is given")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    connection.connect()
    main(given.parts or list(PARTS), given.rounds)
