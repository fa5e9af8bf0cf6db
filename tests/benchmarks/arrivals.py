"""Measure how long a prompt of 3,000 tokens stops the tokens of the rows that are running, at once and in pieces.

    python -m tests.benchmarks.arrivals --rounds 3

Makes a random Phi-3 of 154 M parameters; nothing is downloaded. Takes some minutes on 2 cores.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from steps import command_line
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.schema import FolderModel
from steps.modes import get_mode
from steps.wrappers.engines import load_engine
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Engine, Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks.random_model import random_phi3

ROWS, ROW_TOKENS, LONG_TOKENS = 8, 100, 3000
LONG_ANSWER = 8


class Timed(Sequence):
    """A sequence that records when each of its tokens came."""

    def push(self, token: int) -> None:
        """Record the time of the next token."""
        super().push(token)
        self.moments = [*getattr(self, "moments", []), time.perf_counter()]


def report(folder: Path, checkpoint: Checkpoint, rounds: int) -> None:
    """Print the times between two tokens of running rows while a long prompt arrives, at once and in pieces."""
    table = Table(title=f"{ROWS} rows run, a prompt of {LONG_TOKENS} tokens arrives: ms between tokens of the rows")
    for column in (
        "engine",
        "at once: p50",
        "p99",
        "longest",
        "in pieces: p50",
        "p99",
        "longest",
        "first token, ratio",
    ):
        table.add_column(column, justify="left" if column == "engine" else "right")
    tokenizer = ChatTokenizer(folder)
    for name, engine in engines(folder, checkpoint):
        figures: dict[bool, list[tuple[np.ndarray, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for in_pieces in (False, True):
                figures[in_pieces].append(arrival(engine, tokenizer, in_pieces))
        cells, first = [], {}
        for in_pieces, measured in figures.items():
            gaps = 1000 * np.concatenate([gaps for gaps, _ in measured])
            cells += [f"{np.median(gaps):.0f}", f"{np.percentile(gaps, 99):.0f}", f"{gaps.max():.0f}"]
            first[in_pieces] = np.median([seconds for _, seconds in measured])
        table.add_row(name, *cells, f"{first[True] / first[False]:.2f}")
    Console(width=140).print(table)


def engines(folder: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, Engine]]:
    """Yield the engines, each made when the one before is measured."""
    for precision in ("fp32", "bf16"):
        yield f"torch, {precision}", TorchEngine(str(folder), precision, ROWS + 1, "cpu", prefix_cache_mb=0)
    for precision in ("fp32", "int4"):
        overrides = ["model=local", f"model.path={folder}", "mode=onnx", f"precision={precision}"]
        with get_mode("onnx").stage(checkpoint, command_line.compose("build", overrides)) as exported:
            yield f"onnx, {precision}", OnnxEngine(str(exported), ROWS + 1, prefix_cache_mb=0)
    for precision in ("fp32", "int8"):
        overrides = ["model=local", f"model.path={folder}", "mode=openvino", f"precision={precision}"]
        with get_mode("openvino").stage(checkpoint, command_line.compose("build", overrides)) as exported:
            yield (
                f"openvino, {precision}",
                load_engine(str(exported), "OpenVINO", max_batch_size=ROWS + 1, prefix_cache_mb=0),
            )


def arrival(engine: Engine, tokenizer: ChatTokenizer, in_pieces: bool) -> tuple[np.ndarray, float]:
    """Return the seconds between tokens of running rows from the arrival of a long prompt on, and those to its first.

    The answers of the rows go on until the long prompt has answered.
    """
    random = np.random.default_rng(0)

    def sequence(tokens: int, answer: int) -> Timed:
        prompt = random.integers(5, 500, tokens).tolist()
        return Timed(prompt, Settings(0.0, 1.0, 0, answer), tokenizer)

    scheduler = Scheduler(engine)
    rows, long = [sequence(ROW_TOKENS, 2000) for _ in range(ROWS)], sequence(LONG_TOKENS, LONG_ANSWER)
    # The prompts of a batch job's rows are computed at once.
    scheduler.submit(rows, patient=not in_pieces)
    while min(len(row.tokens) for row in rows) < 5:
        time.sleep(0.01)
    started = time.perf_counter()
    scheduler.submit([long])
    long.done.wait()
    scheduler.stop()
    engine.reset()
    ended = long.moments[-1]
    gaps = [
        after - before
        for row in rows
        for before, after in zip(row.moments, row.moments[1:], strict=False)
        if after >= started and before <= ended
    ]
    return np.array(gaps), long.moments[0] - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = random_phi3(Path(place) / "checkpoint")
        report(source, resolve(FolderModel(name="local", path=str(source))), arguments.rounds)
