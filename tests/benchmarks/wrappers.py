"""Compare the wrappers with the libraries under them, and a served model with 8 clients and with one.

`arrivals` measures how long a prompt of 3,000 tokens stops the tokens of others, at once and in pieces.

    python -m tests.benchmarks.wrappers
    python -m tests.benchmarks.wrappers onnx served --rounds 2

Makes a random Phi-3 of 154 M parameters; nothing is downloaded. Runs both sides of each pair in turn for some rounds,
and prints their medians and ratio. Takes many minutes on 2 cores.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from steps import command_line
from steps.build import build
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.schema import FolderModel, MiniatureModel
from steps.evaluation.asking import loaded
from steps.modes import get_mode
from steps.store import connection
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks import arrivals
from tests.support import free_port

PARTS = ("torch", "onnx", "served", "arrivals")
PROMPTS, NEW_TOKENS, BATCH = 64, 32, 16
STOCK_PROMPTS = 8
CLIENTS, REQUESTS = 8, 4
SERVED = (("pyfunc", "fp32"), ("pyfunc", "bf16"), ("onnx", "fp32"), ("onnx", "int4"))

# Measures once and returns tokens/s.
Measurement = Callable[[], float]
# What is compared: the name and the measurement of our way, and those of the other way.
Pair = tuple[str, Measurement, str, Measurement]


def main(parts: list[str], rounds: int) -> None:
    """Measure every pair of these parts and print the table."""
    table = Table(title=f"random Phi-3, {PROMPTS} prompts x {NEW_TOKENS} tokens, medians of {rounds} rounds")
    for column in ("ours", "tokens/s", "against", "tokens/s", "ratio"):
        table.add_column(column, justify="right" if column in ("tokens/s", "ratio") else "left")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        connection.connect()
        checkpoint = random_phi3(Path(folder) / "checkpoint")
        for name, ours, other_name, theirs in pairs(checkpoint, parts):
            our_rate, other_rate = in_turn(ours, theirs, rounds)
            rates = f"{our_rate:.0f}", f"{other_rate:.0f}", f"{our_rate / other_rate:.2f}"
            table.add_row(name, rates[0], other_name, *rates[1:])
        if table.rows:
            Console(width=110).print(table)
        if "arrivals" in parts:
            arrivals.report(checkpoint, resolve(FolderModel(name="local", path=str(checkpoint))), rounds)


def random_phi3(folder: Path) -> Path:
    """Make a Phi-3 with random weights and the miniature's tokenizer, which never ends an answer; return its folder."""
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
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    # With zeros in its row of the output layer, the end token is never the likeliest: every answer has full length.
    with torch.no_grad():
        model.lm_head.weight[2] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs(folder: Path, parts: list[str]) -> Iterator[Pair]:
    """Yield the pairs of these parts. Each is made only when the one before is measured."""
    checkpoint = resolve(FolderModel(name="local", path=str(folder)))
    prompts = mixed_prompts(ChatTokenizer(folder))
    if "torch" in parts:
        yield from torch_pairs(folder, checkpoint, prompts)
    if "onnx" in parts:
        yield from onnx_pairs(folder, checkpoint, prompts)
    if "served" in parts:
        yield from served_pairs(folder)


def torch_pairs(folder: Path, checkpoint: Checkpoint, prompts: list[list[int]]) -> Iterator[Pair]:
    """Yield our torch engine against transformers' `generate`, and against MLflow's own flavour."""
    import torch
    from transformers import AutoModelForCausalLM

    def engine(precision: str, batch: int) -> Measurement:
        return our_engine(Scheduler(TorchEngine(str(folder), precision, batch, "cpu")), folder, prompts)

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        details = f"{precision}, batches of {BATCH}"
        bare = partial(bare_generate, model, prompts)
        yield f"torch engine, {details}", engine(precision, BATCH), f"bare generate, {details}", bare
    overrides = ["model=local", f"model.path={folder}", f"generation.max_tokens={NEW_TOKENS}"]
    stock = build(command_line.compose("build", [*overrides, "mode=transformers", "precision=bf16"]), checkpoint)
    with loaded(f"models:/{stock}") as model:
        for batch in (BATCH, PROMPTS):
            name, other_name = f"torch engine, bf16, batches of {batch}", "stock flavour, bf16, one prompt a call"
            yield name, engine("bf16", batch), other_name, partial(stock_flavour, model)


def onnx_pairs(folder: Path, checkpoint: Checkpoint, prompts: list[list[int]]) -> Iterator[Pair]:
    """Yield our ONNX engine against a bare loop over ONNX Runtime GenAI's engine."""
    for precision in ("fp32", "int4"):
        overrides = ["model=local", f"model.path={folder}", "mode=onnx", f"precision={precision}"]
        # og.Engine needs the logits of all tokens, and our exports compute those of the last one.
        whole = overrides + (["precision.prune_lm_head=false"] if precision == "int4" else [])
        stage = get_mode("onnx").stage
        with (
            stage(checkpoint, command_line.compose("build", overrides)) as exported,
            stage(checkpoint, command_line.compose("build", whole)) as unpruned,
        ):
            ours = our_engine(Scheduler(OnnxEngine(str(exported), BATCH)), folder, prompts)
            yield f"onnx engine, {precision}", ours, "bare og.Engine loop", bare_onnx(str(unpruned), prompts)


def served_pairs(folder: Path) -> Iterator[Pair]:
    """Yield a served model with many clients against the same with one."""
    for mode, precision in SERVED:
        with served(folder, mode, precision) as port:
            many, one = partial(load_rate, port, CLIENTS), partial(load_rate, port, 1)
            yield f"served {mode} {precision}, {CLIENTS} clients", many, "1 client", one


def in_turn(ours: Measurement, theirs: Measurement, rounds: int) -> tuple[float, float]:
    """Return the medians of two measurements that are taken in turn, after one round that does not count."""
    measured = [(ours(), theirs()) for _ in range(rounds + 1)][1:]
    return tuple(statistics.median(column) for column in zip(*measured, strict=True))


def mixed_prompts(tokenizer: ChatTokenizer) -> list[list[int]]:
    """Return prompts of mixed length, as token ids."""
    words = ["the", "capital", "of", "Spain", "is", "Madrid", "and"]
    texts = [" ".join(words[: 1 + index % 7] * (1 + index % 5)) for index in range(PROMPTS)]
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]


def our_engine(scheduler: Scheduler, folder: Path, prompts: list[list[int]]) -> Measurement:
    """Return a measurement of one of our engines."""
    tokenizer = ChatTokenizer(folder)
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=NEW_TOKENS)

    def measure() -> float:
        sequences = [Sequence(prompt, settings, tokenizer) for prompt in prompts]
        started = time.perf_counter()
        scheduler.run(sequences)
        return sum(len(sequence.tokens) for sequence in sequences) / (time.perf_counter() - started)

    return measure


def bare_generate(model: Any, prompts: list[list[int]]) -> float:
    """Return tokens/s of transformers' `generate`, with left-padded batches of prompts sorted by length."""
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


def stock_flavour(model: Any) -> float:
    """Return tokens/s of MLflow's flavour with one conversation a call, as in the upstream sample."""
    started, tokens = time.perf_counter(), 0
    for _ in range(STOCK_PROMPTS):
        (reply,) = model.predict({"messages": [{"role": "user", "content": "the capital of Spain is Madrid and"}]})
        tokens += reply["usage"]["completion_tokens"]
    return tokens / (time.perf_counter() - started)


def bare_onnx(directory: str, prompts: list[list[int]]) -> Measurement:
    """Return a measurement of the shortest loop over og.Engine, with the same batch size."""
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


@contextlib.contextmanager
def served(folder: Path, mode: str, precision: str) -> Iterator[int]:
    """Build a variant of the checkpoint in `folder` and serve it until the end of the block; yield the port."""
    overrides = ["model=local", f"model.path={folder}", f"mode={mode}", f"precision={precision}"]
    model_id = build(command_line.compose("build", overrides))
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", f"models:/{model_id}", "--env-manager", "local", "-p", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        yield port
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def wait_for(address: str) -> None:
    """Return when a server answers; raise TimeoutError after two minutes."""
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")


def load_rate(port: int, clients: int) -> float:
    """Return tokens/s of all clients together. Each sends one request after the other."""

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
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; available: {', '.join(PARTS)}")
    main(arguments.parts or list(PARTS), arguments.rounds)
