"""Measure what an evaluation costs beside the engine, and how long a large prompt set takes to check.

    python -m tests.benchmarks.evaluation

Makes a random Phi-3 of 154 M parameters (nothing is downloaded). The same 1,000 prompts go through `evaluate`'s own
asking (pyfunc interface, batches, some rows alone, journal flushed to the disk) and, a part of them each time that
as many are answered, through the bare engine; the seconds are compared, and both give the same tokens. Then all of
them are scored as `evaluate` scores a variant: loaded, asked, held against the contract, scored and logged. Takes
many minutes on 2 cores.
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

from steps import build, command_line
from steps.checkpoints import staging
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import Evaluation, FolderModel
from steps.config.schema import PromptSet as PromptSetConfig
from steps.evaluation import prompt_set, ruler, scores
from steps.evaluation.answers import answer_rows
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import ContextCheck, context_check
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.scoring import score_variant
from steps.store import connection, runs
from steps.store.variants import Variant, find_variants, read_variant
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks.wrappers import random_phi3

PROMPTS, SLICES, NEW_TOKENS, BATCH = 1000, 4, 16, 16
ROWS = 100_000
CHECK = """
import sys, time
from pathlib import Path
from steps.evaluation import prompt_set
from steps.config.schema import PromptSet
def peak():  # not getrusage, which counts the process that this one was forked from
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before = peak()
started = time.perf_counter()
loaded = prompt_set.load(PromptSet("large", sys.argv[1]))
sha256 = loaded.sha256
seconds = time.perf_counter() - started
print(len(loaded.rows), seconds, before, peak())
"""
WORDS = ["the", "capital", "of", "Spain", "is", "Madrid", "and"]


def main() -> None:
    """Measure everything and print two tables."""
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        large = check_large_set(Path(folder), project)
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
        check_context_of_large_set(large)


def check_context_of_large_set(file: Path) -> None:
    """Print the seconds that the context check of 100,000 rows takes."""
    variant = find_variants(mlflow.MlflowClient(), runs.experiment_id())[-1]
    rows = prompt_set.load(PromptSetConfig("large", str(file)))
    started = time.perf_counter()
    context_check(variant, rows)
    print(f"Checked the context of {variant.name} for {len(rows.rows)} rows in {time.perf_counter() - started:.1f} s")


def check_large_set(folder: Path, project: Path) -> Path:
    """Make a set of 100,000 rows; print the seconds and the memory of checking it in a process of its own."""
    file = folder / "large.jsonl"
    with file.open("w") as out:
        for number in range(ROWS):
            messages = [{"role": "user", "content": f"Question {number}: {' '.join(WORDS * 5)}?"}]
            row = {"id": f"row-{number}", "messages": messages, "target": [f"answer {number}", "é"], "tags": ["a", "b"]}
            out.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", CHECK, str(file)]
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    rows, seconds, before, after = map(float, done.stdout.split())
    megabytes = f"{after:.0f} MB at the most ({before:.0f} MB before)"
    print(f"Checked {rows:.0f} rows ({file.stat().st_size / 1e6:.0f} MB) in {seconds:.1f} s, {megabytes}")
    return file


def compare(folder: Path, checkpoint: Path, mode: str, precision: str) -> tuple[float, float, float]:
    """Tokens/s asked by `evaluate`, of a whole scored variant, and of the bare engine in turn with the first."""
    words = ["model=local", f"model.path={checkpoint}", f"mode={mode}", f"precision={precision}"]
    config = command_line.compose("build", [*words, f"generation.max_tokens={NEW_TOKENS}"])
    model_id = build.build(config)
    scored = _scored_seconds(model_id)
    rows = list(_rows().rows)
    variant = read_variant(mlflow.MlflowClient(), model_id)
    source = resolve(FolderModel(name="local", path=str(checkpoint)))
    with staging.staged(source, config) as staged, loaded(f"models:/{model_id}") as model:
        tokenizer = ChatTokenizer(staged)
        engine = TorchEngine(str(staged), precision, BATCH, "cpu") if mode == "pyfunc" else None
        bare = partial(_bare_seconds, Scheduler(engine or OnnxEngine(str(staged), BATCH)), tokenizer)
        in_turn(folder, model, variant, rows[: PROMPTS // SLICES], bare)  # does not count
        ours, theirs = in_turn(folder, model, variant, rows, bare)
    return tuple(PROMPTS * NEW_TOKENS / spent for spent in (ours, scored, theirs))


def in_turn(
    folder: Path, model, variant: Variant, rows: list[Row], bare: Callable[[list[Row]], float]
) -> tuple[float, float]:
    """Seconds of all rows asked by `evaluate`, and of the bare engine with a slice of them each time it is due."""
    path = folder / "journal.sqlite"
    path.unlink(missing_ok=True)
    journal = PausingJournal(path, rows, bare)
    started = time.perf_counter()
    asker = Asker(model, variant.mode, variant.interface)
    (answers,) = answer_rows(asker, variant, PromptSet("set", tuple(rows)), ContextCheck(), Evaluation(), journal)
    seconds = time.perf_counter() - started - journal.bare_seconds
    journal.close()
    assert not any(answer.error for answer in answers)
    return seconds, journal.bare_seconds


class PausingJournal(Journal):
    """A journal in whose pauses the bare engine has its turn."""

    def __init__(self, path: Path, rows: list[Row], bare: Callable[[list[Row]], float]):
        super().__init__(path, {})
        self.bare_seconds, self._rows, self._bare = 0.0, rows, bare
        self._asked = self._next = 0

    def add(self, entries: dict[str, Any]) -> None:
        super().add(entries)
        self._asked += len(entries)
        step = PROMPTS // SLICES
        while self._next + step <= self._asked:
            self.bare_seconds += self._bare(self._rows[self._next : self._next + step])
            self._next += step


def _scored_seconds(model_id: str) -> float:
    """All that `evaluate` does for a variant but timing it."""
    client = mlflow.MlflowClient()
    variant = read_variant(client, model_id)
    config = command_line.compose("evaluate", [])
    rows = _rows()
    measure = ruler.make(config)
    scores.load_metrics(measure.sources.values())
    started = time.perf_counter()
    card = score_variant(client, variant, rows, measure, config.evaluate)
    seconds = time.perf_counter() - started
    assert not any(card.errors)
    return seconds


def _rows() -> PromptSet:
    rows = (Row(str(number), (("user", _prompt(number)),), ("a",), ()) for number in range(PROMPTS))
    return PromptSet("benchmark", tuple(rows))


def _prompt(number: int) -> str:
    return " ".join(WORDS[: 1 + number % 7] * (1 + number % 5))


def _bare_seconds(scheduler: Scheduler, tokenizer: ChatTokenizer, rows: list[Row]) -> float:
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=NEW_TOKENS)
    sequences = [Sequence(tokenizer.encode_chat(row.conversation), settings, tokenizer) for row in rows]
    started = time.perf_counter()
    scheduler.run(sequences)
    seconds = time.perf_counter() - started
    assert all(len(sequence.tokens) == NEW_TOKENS for sequence in sequences)
    return seconds


if __name__ == "__main__":
    main()
