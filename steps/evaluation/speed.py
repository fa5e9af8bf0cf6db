"""Measure the speed and memory of variants, each alone in a fresh process after a warm-up.

Reads the variant's model from the store and some questions of the prompt set. The numbers are medians:

    speed/load_seconds             loading the model, each time in a fresh process with its libraries imported
    speed/time_to_first_token_ms   until the first text of a stream; for a model without one, a call for one token
    speed/tokens_per_second        one by one, reading the prompt included; _p25 and _p75 are the quartiles of the calls
    speed/batch_tokens_per_second  with the mode's batch size of requests in a call; one by one if it takes no batches
    speed/latency_p50_ms, _p95_ms  of a whole answer, one by one
    speed/bandwidth_fraction       tokens_per_second relative to reading all weights, as stored, from memory for each
                                   token (CPU only)
    memory/peak_mb                 the most memory that the process held, libraries included; on a GPU also gpu_peak_mb

`speed/<first 16 of the prompt set's sha256>.json` on the variant's run has every call, and facts about the machine.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import IO, Any

from steps.config.paths import PROJECT
from steps.config.schema import Evaluation
from steps.errors import StepError
from steps.evaluation import scores_log
from steps.evaluation.context_check import context_check
from steps.evaluation.prompt_set import PromptSet
from steps.interfaces.interface import Question
from steps.modes.mode import Mode
from steps.store import child_process, integrity
from steps.store.names import TOKENS_PER_SECOND
from steps.store.variants import Variant

QUESTIONS = 16


class Bench:
    """Processes that have imported the libraries of modes. Each measurement is a fork of one."""

    def __init__(self, modes: Iterable[Mode]) -> None:
        # torch takes memory, so a mode without it gets a process without it.
        self._processes = {modules: _start(modules) for modules in {mode.modules for mode in modes}}

    def measure(self, variant: Variant, rows: PromptSet, evaluation: Evaluation) -> dict[str, Any]:
        """Time the calls of one variant; raises StepError if its process fails or is killed."""
        import mlflow

        # Every process has finished its imports by then: nothing else runs during a measurement.
        _ = self.machine
        process = self._processes[variant.mode.modules]
        with integrity.local_copy(mlflow.MlflowClient(), variant) as folder:
            measured = process.ask(_request(folder, variant, rows, evaluation))
        if "fault" in measured:
            raise StepError(f"the speed of {variant.name} could not be measured: {measured['fault'][:500]}")
        return measured

    @cached_property
    def machine(self) -> dict[str, Any]:
        """Facts about the machine, measured once."""
        for process in self._processes.values():
            process.wait_for_imports()
        facts = next(iter(self._processes.values())).ask({})
        if "fault" in facts:
            raise StepError(f"the machine could not be measured: {facts['fault'][:500]}")
        return facts

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.close()


class _Process:
    """A process of speed_process.py: a request and a reply are a JSON object on a line."""

    def __init__(self, process: subprocess.Popen[str], requests: IO[str], replies: IO[str]) -> None:
        self._process, self._requests, self._replies = process, requests, replies

    def wait_for_imports(self) -> None:
        """Read the line that says that the imports are done; empty if the process has ended."""
        self._replies.readline()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request; raises StepError if the process has ended."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            reply: dict[str, Any] = json.loads(self._replies.readline())
        except (OSError, json.JSONDecodeError):
            code = self._process.poll()
            raise StepError(f"The process that measures speed has ended (exit code {code}).") from None
        return reply

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _start(modules: tuple[str, ...]) -> _Process:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "steps.evaluation.speed_process", *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=PROJECT,
        env=child_process.storeless_environment(),
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    return _Process(process, process.stdin, process.stdout)


@contextlib.contextmanager
def bench(variants: list[Variant]) -> Iterator[Bench]:
    """Start the processes that measure variants. They import their libraries while answers are made."""
    opened = Bench([variant.mode for variant in variants])
    try:
        yield opened
    finally:
        opened.close()


def metrics(measured: dict[str, Any], machine: dict[str, Any], on_gpu: bool) -> dict[str, float]:
    """Return the medians by name of metric. What a mode cannot report is left out."""
    import numpy as np

    latencies = [1000 * latency for latency, _ in measured["single"]]
    rates = [tokens / latency for latency, tokens in measured["single"]]
    low, median, high = np.percentile(rates, [25, 50, 75])
    values = {
        "speed/load_seconds": np.median(measured["loads"]),
        TOKENS_PER_SECOND.key: median,
        f"{TOKENS_PER_SECOND.key}_p25": low,
        f"{TOKENS_PER_SECOND.key}_p75": high,
        "speed/batch_tokens_per_second": np.median([tokens / latency for latency, tokens in measured["batched"]]),
        "speed/latency_p50_ms": np.percentile(latencies, 50),
        "speed/latency_p95_ms": np.percentile(latencies, 95),
        "memory/peak_mb": measured["peak_bytes"] / 1e6,
    }
    if measured["first_token"]:
        values["speed/time_to_first_token_ms"] = 1000 * np.median(measured["first_token"])
    if measured["gpu_peak_bytes"]:
        values["memory/gpu_peak_mb"] = measured["gpu_peak_bytes"] / 1e6
    elif not on_gpu:
        values["speed/bandwidth_fraction"] = median * measured["weights_bytes"] / machine["read_bandwidth"]
    return {name: float(value) for name, value in values.items()}


def log(variant: Variant, rows: PromptSet, measured: dict[str, Any], machine: dict[str, Any]) -> None:
    """Log every call to the active run, then the medians to it and to the variant's model."""
    import mlflow

    # First, so that a number in a table always has its calls, wherever this is interrupted.
    mlflow.log_dict({"machine": machine} | measured, file(rows.sha256))
    values = metrics(measured, machine, variant.config.mode.on_gpu)
    mlflow.log_metrics(values, dataset=scores_log.dataset(rows), model_id=variant.model_id)


def file(prompt_set_sha256: str) -> str:
    """Return the artifact with every call that was timed."""
    return f"speed/{prompt_set_sha256[:16]}.json"


def _request(folder: str, variant: Variant, rows: PromptSet, evaluation: Evaluation) -> dict[str, Any]:
    """Return the request that speed_process.measure takes."""
    questions = sample_questions(variant, rows, evaluation.speed_tokens)
    return {
        "path": folder,
        "mode": variant.mode.name,
        "interface": variant.interface.name,
        "questions": [asdict(question) for question in questions],
        "batch_size": variant.config.mode.batch_size,
        "max_tokens": evaluation.speed_tokens,
        "seconds": evaluation.speed_seconds,
    }


def sample_questions(variant: Variant, rows: PromptSet, tokens: int) -> list[Question]:
    """Return questions, spread over the prompt set, that leave room for an answer of `tokens` tokens."""
    check = context_check(variant, rows, tokens)
    unfit = {*check.control_tokens, *check.too_long, *check.unaskable}
    askable = [index for index in range(len(rows.rows)) if index not in unfit]
    if not askable:
        raise StepError(f"the speed of {variant.name} could not be measured: none of {len(rows.rows)} rows fits it.")
    chosen = askable[:: max(1, len(askable) // QUESTIONS)][:QUESTIONS]
    return [
        Question(rows.rows[index].conversation, check.prompts.get(index, rows.rows[index].question)) for index in chosen
    ]
