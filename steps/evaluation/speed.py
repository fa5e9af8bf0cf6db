"""Speed and memory of variants, each measured alone in a fresh process after a warm-up.

Reads the variant's model from the store and some questions of the prompt set; the numbers are medians:

    speed/load_seconds            loading the model, its libraries being imported already, each time in a process anew
    speed/time_to_first_token_ms  until the first text of a stream; of a model without one, a call for one token
    speed/tokens_per_second       one by one, reading the prompt included; _p25 and _p75 are the quartiles of the calls
    speed/batch_tokens_per_second with `mode.max_batch_size` requests in a call; the stock flavour takes one at a time
    speed/latency_p50_ms, _p95_ms of a whole answer, one by one
    speed/bandwidth_fraction      tokens_per_second against reading all weights, in the bytes that they are stored in,
                                  from memory for each token (CPU only)
    memory/peak_mb                the most that the process held, libraries included; memory/gpu_peak_mb on a GPU

`speed/<first 16 of the prompt set's sha256>.json` on the variant's run has every call, and what the machine is.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from steps.config.schema import Evaluation
from steps.errors import StepError
from steps.evaluation import fit, scores
from steps.evaluation.prompt_set import PromptSet
from steps.store import integrity
from steps.store.child_process import storeless_environment
from steps.store.variants import Variant

PROJECT = Path(__file__).resolve().parents[2]
MAIN = "speed/tokens_per_second"
QUESTIONS = 16
COMMON = ("mlflow.pyfunc", "mlflow.pyfunc.loaders.code_model")
TORCH = (
    *COMMON,
    "mlflow.transformers",
    "transformers.pipelines",
    "transformers.models.auto.modeling_auto",
    "transformers.models.phi3.modeling_phi3",
)
# What the modes' processes import beforehand; torch is memory, so a mode without it gets a process without it.
IMPORTS = {"transformers": TORCH, "pyfunc": TORCH, "onnx": COMMON}


class Bench:
    """A process for each set of libraries that the variants need, from which each measurement is forked."""

    def __init__(self, modes: Iterable[str]):
        self._processes = {imports: _start(imports) for imports in {IMPORTS[mode] for mode in modes}}

    def measure(self, variant: Variant, rows: PromptSet, evaluation: Evaluation) -> dict[str, Any]:
        """Every call of one variant, timed; raises StepError where its process fails or is ended."""
        import mlflow

        self.machine  # noqa: B018  every process has imported by then: nothing runs beside a measurement
        process = self._processes[IMPORTS[variant.params["mode"]]]
        with integrity.local_copy(mlflow.MlflowClient(), variant) as folder:
            measured = _ask(process, _request(folder, variant, rows, evaluation))
        if "fault" in measured:
            raise StepError(f"the speed of {variant.name} could not be measured: {measured['fault'][:500]}")
        return measured

    @cached_property
    def machine(self) -> dict[str, Any]:
        """Facts of the machine, measured once."""
        self._imported  # noqa: B018  each process says so, once
        facts = _ask(next(iter(self._processes.values())), {})
        if "fault" in facts:
            raise StepError(f"the machine could not be measured: {facts['fault'][:500]}")
        return facts

    @cached_property
    def _imported(self) -> list[str]:
        """What each process said when its imports were done; nothing where it ended before."""
        return [process.stdout.readline() for process in self._processes.values()]

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()


@contextlib.contextmanager
def bench(variants: list[Variant]) -> Iterator[Bench]:
    """Start the processes that measure variants; their imports go on while the answers are made."""
    opened = Bench({variant.params["mode"] for variant in variants})
    try:
        yield opened
    finally:
        opened.close()


def metrics(measured: dict[str, Any], machine: dict[str, Any], on_gpu: bool) -> dict[str, float]:
    """The medians by name of metric; what a mode cannot tell is left out."""
    import numpy as np

    latencies = [1000 * latency for latency, _ in measured["single"]]
    rates = [tokens / latency for latency, tokens in measured["single"]]
    low, median, high = np.percentile(rates, [25, 50, 75])
    found = {
        "speed/load_seconds": np.median(measured["loads"]),
        MAIN: median,
        f"{MAIN}_p25": low,
        f"{MAIN}_p75": high,
        "speed/batch_tokens_per_second": np.median([tokens / latency for latency, tokens in measured["batched"]]),
        "speed/latency_p50_ms": np.percentile(latencies, 50),
        "speed/latency_p95_ms": np.percentile(latencies, 95),
        "memory/peak_mb": measured["peak_bytes"] / 1e6,
    }
    if measured["first_token"]:
        found["speed/time_to_first_token_ms"] = 1000 * np.median(measured["first_token"])
    if measured["gpu_peak_bytes"]:
        found["memory/gpu_peak_mb"] = measured["gpu_peak_bytes"] / 1e6
    elif not on_gpu:
        found["speed/bandwidth_fraction"] = median * measured["weights_bytes"] / machine["read_bandwidth"]
    return {name: float(value) for name, value in found.items()}


def log(variant: Variant, rows: PromptSet, measured: dict[str, Any], machine: dict[str, Any]) -> None:
    """Log every call to the active run, and then the medians to it and to the variant's model."""
    import mlflow

    on_gpu = variant.params.get("mode.execution_provider", "cpu") != "cpu"
    # A number in a table has its calls beside it, wherever this is interrupted.
    mlflow.log_dict({"machine": machine} | measured, file(rows.sha256))
    mlflow.log_metrics(metrics(measured, machine, on_gpu), dataset=scores.dataset(rows), model_id=variant.model_id)


def file(prompt_set_sha256: str) -> str:
    """The artifact of every call that was timed."""
    return f"speed/{prompt_set_sha256[:16]}.json"


def _request(folder: str, variant: Variant, rows: PromptSet, evaluation: Evaluation) -> dict[str, Any]:
    """What speed_process.measure takes."""
    return {
        "path": folder,
        "mode": variant.params["mode"],
        "interface": variant.params["interface"],
        "rows": _questions(variant, rows, evaluation.speed_tokens),
        "batch_size": int(variant.params["mode.max_batch_size"]),
        "max_tokens": evaluation.speed_tokens,
        "seconds": evaluation.speed_seconds,
    }


def _questions(variant: Variant, rows: PromptSet, tokens: int) -> list[dict[str, Any]]:
    """Questions from all over the prompt set that leave room for an answer of `tokens`, as the interface takes them."""
    fitted = fit.fit(variant, rows, tokens)
    unfit = {*fitted.control_tokens, *fitted.too_long, *fitted.unaskable}
    askable = [index for index in range(len(rows.rows)) if index not in unfit]
    if not askable:
        raise StepError(f"the speed of {variant.name} could not be measured: none of {len(rows.rows)} rows fits it.")
    chosen = askable[:: max(1, len(askable) // QUESTIONS)][:QUESTIONS]
    if variant.params["interface"] == "chat":
        return [{"messages": rows.rows[index].conversation} for index in chosen]
    return [{"prompt": fitted.prompts.get(index, rows.rows[index].question)} for index in chosen]


def _start(imports: tuple[str, ...]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "steps.evaluation.speed_process", *imports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=PROJECT,
        env=storeless_environment(),
    )


def _ask(process: subprocess.Popen, request: dict[str, Any]) -> dict[str, Any]:
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())
    except (OSError, json.JSONDecodeError):
        raise StepError(f"The process that measures speed is gone (exit code {process.poll()}).") from None
