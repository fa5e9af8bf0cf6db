"""Measure what an evaluation costs in addition to the engine, and how long a large prompt set takes to check.

    python -m tests.benchmarks.evaluation

Makes a random Phi-3 of 154 M parameters; nothing is downloaded. 1,000 prompts are asked as `evaluate` asks them:
through the pyfunc interface, in batches, some rows alone, with the journal on disk. The bare engine completes the same
prompts, a quarter of them each time that as many are answered. Both generate the same number of tokens, and their
seconds are compared. A whole scoring is timed too: load, ask, run the contract suite, score and log. Takes many minutes
on 2 cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from rich.console import Console
from rich.table import Table

from steps import command_line
from steps.build import build
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import Evaluation, FolderModel
from steps.config.schema import PromptSet as PromptSetConfig
from steps.evaluation import metric_loading, prompt_set, ruler
from steps.evaluation.answers import answer_rows
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import ContextCheck, context_check
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scoring import score_variant
from steps.modes import get_mode
from steps.store import connection, runs
from steps.store.variants import Variant, find_variants, read_variant
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks.random_model import random_phi3

PROMPTS, SLICES, NEW_TOKENS, BATCH = 1000, 4, 16, 16
ROWS = 100_000
WORDS = ["the", "capital", "of", "Spain", "is", "Madrid", "and"]


def main() -> None:
    """Measure everything; print two sentences and a table."""
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.jsonl"
        check_large_set(large, project)
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        connection.connect()
        table = Table(title=f"{PROMPTS} prompts x {NEW_TOKENS} tokens")
        for column in ("engine", "bare (tokens/s)", "asked", "ratio", "asked, scored, logged", "ratio"):
            table.add_column(column, justify="left" if column == "engine" else "right")
        checkpoint = random_phi3(Path(folder) / "checkpoint")
        for mode, precision in (("pyfunc", "bf16"), ("onnx", "int4")):
            asked, scored, bare = compare(Path(folder), checkpoint, mode, precision)
            rates = [f"{asked:.0f}", f"{asked / bare:.2f}", f"{scored:.0f}", f"{scored / bare:.2f}"]
            table.add_row(f"{mode} {precision}", f"{bare:.0f}", *rates)
        Console(width=110).print(table)
        check_large_context(large)


def check_large_set(file: Path, project: Path) -> None:
    """Write a set of 100,000 rows; print the seconds and the memory of checking it in a process of its own."""
    with file.open("w") as out:
        for number in range(ROWS):
            messages = [{"role": "user", "content": f"Question {number}: {' '.join(WORDS * 5)}?"}]
            row = {"id": f"row-{number}", "messages": messages, "target": [f"answer {number}", "é"], "tags": ["a", "b"]}
            out.write(json.dumps(row) + "\n")
    command = [sys.executable, "-m", "tests.benchmarks.load_prompt_set", str(file)]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    rows, seconds, before, after = map(float, done.stdout.split())
    megabytes = f"peak {after:.0f} MB ({before:.0f} MB before)"
    print(f"Checked {rows:.0f} rows ({file.stat().st_size / 1e6:.0f} MB) in {seconds:.1f} s, {megabytes}")


def check_large_context(file: Path) -> None:
    """Print the seconds of checking 100,000 rows against a variant's tokenizer and context."""
    variant = find_variants(mlflow.MlflowClient(), runs.experiment_id())[-1]
    rows = prompt_set.load(PromptSetConfig("large", str(file)))
    started = time.perf_counter()
    context_check(variant, rows)
    seconds = time.perf_counter() - started
    print(f"Checked {len(rows.rows)} rows against the context of {variant.name} in {seconds:.1f} s")


def compare(folder: Path, checkpoint: Path, mode: str, precision: str) -> tuple[float, float, float]:
    """Return tokens/s of `evaluate`'s asking, of scoring a whole variant, and of the bare engine."""
    overrides = ["model=local", f"model.path={checkpoint}", f"mode={mode}", f"precision={precision}"]
    config = command_line.compose("build", [*overrides, f"generation.max_tokens={NEW_TOKENS}"])
    model_id = build(config)
    variant = read_variant(mlflow.MlflowClient(), model_id)
    scored = scored_seconds(variant)
    rows = list(benchmark_set().rows)
    source = resolve(FolderModel(name="local", path=str(checkpoint)))
    with get_mode(mode).stage(source, config) as staged, loaded(variant.uri) as model:
        asker = Asker(model, variant.mode, variant.interface)
        tokenizer = ChatTokenizer(staged)
        engine = TorchEngine(str(staged), precision, BATCH, "cpu") if mode == "pyfunc" else None
        bare = partial(bare_seconds, Scheduler(engine or OnnxEngine(str(staged), BATCH)), tokenizer)
        in_turn(folder, asker, variant, rows[: PROMPTS // SLICES], bare)  # a warm-up that does not count
        ours, theirs = in_turn(folder, asker, variant, rows, bare)
    tokens = PROMPTS * NEW_TOKENS
    return tokens / ours, tokens / scored, tokens / theirs


def in_turn(
    folder: Path, asker: Asker, variant: Variant, rows: list[Row], bare: Callable[[list[Row]], float]
) -> tuple[float, float]:
    """Return the seconds of asking all rows, and those of the bare engine, which takes turns with it."""
    path = folder / "journal.sqlite"
    path.unlink(missing_ok=True)
    journal = PausingJournal(path, rows, bare)
    started = time.perf_counter()
    (answers,) = answer_rows(asker, variant, PromptSet("set", tuple(rows)), ContextCheck(), Evaluation(), journal)
    seconds = time.perf_counter() - started - journal.bare_seconds
    journal.close()
    assert not any(answer.error for answer in answers)
    return seconds, journal.bare_seconds


class PausingJournal(Journal):
    """A journal that gives the bare engine its turn each time that a slice of the rows is answered."""

    def __init__(self, path: Path, rows: list[Row], bare: Callable[[list[Row]], float]):
        super().__init__(path, {})
        self.bare_seconds = 0.0
        self.rows, self.bare = rows, bare
        self.answered = self.next_row = 0

    def add(self, entries: dict[str, Any]) -> None:
        super().add(entries)
        self.answered += len(entries)
        size = PROMPTS // SLICES
        while self.next_row + size <= self.answered:
            self.bare_seconds += self.bare(self.rows[self.next_row : self.next_row + size])
            self.next_row += size


def scored_seconds(variant: Variant) -> float:
    """Return the seconds of everything that `evaluate` does for a variant, except measuring its speed."""
    client = mlflow.MlflowClient()
    config = command_line.compose("evaluate", [])
    rows = benchmark_set()
    measure = ruler.make(config)
    metric_loading.load_metrics(measure.sources.values())
    started = time.perf_counter()
    card = score_variant(client, variant, rows, measure, config.evaluate)
    seconds = time.perf_counter() - started
    assert not any(card.errors)
    return seconds


def benchmark_set() -> PromptSet:
    """Return prompts of mixed length."""
    rows = (Row(str(number), (("user", prompt(number)),), ("a",), ()) for number in range(PROMPTS))
    return PromptSet("benchmark", tuple(rows))


def prompt(number: int) -> str:
    """Return 1 to 35 words."""
    return " ".join(WORDS[: 1 + number % 7] * (1 + number % 5))


def bare_seconds(scheduler: Scheduler, tokenizer: ChatTokenizer, rows: list[Row]) -> float:
    """Return the seconds that the bare engine takes to complete these rows."""
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=NEW_TOKENS)
    sequences = [Sequence(tokenizer.encode_chat(row.conversation), settings, tokenizer) for row in rows]
    started = time.perf_counter()
    scheduler.run(sequences)
    seconds = time.perf_counter() - started
    assert all(len(sequence.tokens) == NEW_TOKENS for sequence in sequences)
    return seconds


if __name__ == "__main__":
    main()
