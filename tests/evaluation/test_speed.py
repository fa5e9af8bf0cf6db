"""Speed and memory: what a fresh process measures of a model, and what becomes of one that fails there."""

import contextlib
import json

import mlflow
import pytest
from steps.evaluation.fit import Fit

from steps import command_line
from steps.build import build
from steps.config.schema import Evaluation, PromptSet
from steps.errors import StepError
from steps.evaluation import fit, machine, prompt_set, speed, speed_process
from steps.evaluation.prompt_set import PromptSet as PromptRows
from steps.evaluation.prompt_set.row import Row
from steps.evaluation.speed import Bench
from steps.store import integrity, runs
from steps.store.child_process import storeless_environment
from steps.store.variants import Variant, find_variants

BRIEF = Evaluation(speed_seconds=0.05, speed_tokens=6)
FACTS = PromptSet("facts", "conf/prompt_set/facts.jsonl")
NAMES = (
    "load_seconds",
    "time_to_first_token_ms",
    "tokens_per_second",
    "tokens_per_second_p25",
    "tokens_per_second_p75",
    "batch_tokens_per_second",
    "latency_p50_ms",
    "latency_p95_ms",
    "bandwidth_fraction",
)
CRASHING = """
import os
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Crashing(PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        os.kill(os.getpid(), 11)

set_model(Crashing())
"""


@pytest.fixture(scope="module")
def bench():
    opened = Bench(["onnx"])
    yield opened
    opened.close()


@pytest.mark.parametrize("interface", ["chat", "prompt"])
def test_a_variant_is_measured_and_its_medians_are_logged(bench, checkpoint, interface):
    build(command_line.compose("build", ["mode=onnx", "mode.max_batch_size=4", f"interface={interface}"]), checkpoint)
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    measured = bench.measure(variant, prompt_set.load(FACTS), BRIEF)
    with runs.reopen(variant.run_id):
        speed.log(variant, prompt_set.load(FACTS), measured, bench.machine)
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    found = {name: value for name, _, value in variant.metrics}
    # What the questions of one prompt set gave is not taken for what those of another would give.
    sha256 = prompt_set.load(FACTS).sha256
    assert {digest for name, digest, _ in variant.metrics if name.startswith("speed/")} == {sha256[:16]}
    assert {f"speed/{name}" for name in NAMES} <= set(found)
    assert all(value > 0 for value in found.values())
    assert found["speed/latency_p50_ms"] <= found["speed/latency_p95_ms"]
    assert found["memory/peak_mb"] > 50
    assert all(1 <= tokens <= BRIEF.speed_tokens for _, tokens in measured["single"])
    assert all(tokens > 4 for _, tokens in measured["batched"])
    assert len(measured["loads"]) > speed_process.MINIMUM_CALLS
    kept = mlflow.artifacts.load_dict(f"runs:/{variant.run_id}/{speed.file(sha256)}")
    assert kept["machine"]["cores"] >= 1
    assert len(kept["single"]) >= speed_process.MINIMUM_CALLS


def test_the_medians_and_the_fraction_of_the_bandwidth():
    measured = {
        "loads": [9.0, 2.0, 1.0],
        "single": [[0.1, 10], [0.2, 10], [0.4, 10]],
        "first_token": [0.03, 0.01, 0.02],
        "batched": [[0.5, 100]],
        "weights_bytes": 10**9,
        "peak_bytes": 3 * 10**9,
        "gpu_peak_bytes": 0,
    }
    found = speed.metrics(measured, {"read_bandwidth": 10**11}, on_gpu=False)
    assert found["speed/load_seconds"] == pytest.approx(2)
    assert found["speed/tokens_per_second"] == pytest.approx(50)
    assert found["speed/batch_tokens_per_second"] == pytest.approx(200)
    assert found["speed/time_to_first_token_ms"] == pytest.approx(20)
    assert found["speed/latency_p50_ms"] == pytest.approx(200)
    assert found["speed/bandwidth_fraction"] == pytest.approx(0.5)
    assert found["memory/peak_mb"] == pytest.approx(3000)
    on_gpu = speed.metrics(measured | {"gpu_peak_bytes": 5}, {"read_bandwidth": 10**11}, on_gpu=True)
    assert "speed/bandwidth_fraction" not in on_gpu
    assert on_gpu["memory/gpu_peak_mb"] > 0


def test_calls_are_logged_before_the_medians_that_say_they_are_there(monkeypatch):
    logged = []
    monkeypatch.setattr(speed, "metrics", lambda *_: {})
    for name in ("log_dict", "log_metrics"):
        monkeypatch.setattr(mlflow, name, lambda *_, name=name, **__: logged.append(name))
    rows = PromptRows("set", (Row("a", (("user", "q"),), ("t",), ()),))
    speed.log(Variant("m-1", "r", "v", {}, {}, ()), rows, {}, {})
    assert logged == ["log_dict", "log_metrics"]


@pytest.mark.parametrize(("interface", "key"), [("chat", "messages"), ("prompt", "prompt")])
def test_the_questions_are_from_all_over_the_rows_that_fit(monkeypatch, interface, key):
    rows = PromptRows("set", tuple(Row(str(number), (("user", str(number)),), ("t",), ()) for number in range(100)))
    unfit = dict.fromkeys(range(0, 100, 6), "no")
    found = Fit(too_long=unfit, control_tokens={1: "no"}, unaskable={2: "no"})
    monkeypatch.setattr(fit, "fit", lambda variant, rows, reserve: found)
    asked = speed._questions(Variant("m", "r", "v", {}, {"interface": interface}, ()), rows, 8)
    numbers = [int(row["prompt"] if interface == "prompt" else row["messages"][0]["content"]) for row in asked]
    assert len(numbers) == speed.QUESTIONS
    assert all(key in row for row in asked)
    assert not set(numbers) & {1, 2, *unfit}
    assert (numbers[0], numbers[-1] > 80) == (3, True)
    monkeypatch.setattr(fit, "fit", lambda variant, rows, reserve: Fit(too_long=dict.fromkeys(range(100), "no")))
    with pytest.raises(StepError, match="the speed of v could not be measured: none of 100 rows fits it"):
        speed._questions(Variant("m", "r", "v", {}, {"interface": interface}, ()), rows, 8)


def test_a_batch_is_warmed_up_too(monkeypatch):
    calls = []

    class _Asking:
        takes_batches, can_stop_early = True, False

        def __init__(self, *_):
            """Takes what the real one takes."""

        def tokens(self, rows):
            calls.append(len(rows))
            return 1

    monkeypatch.setattr(speed_process, "Asking", _Asking)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda path: None)
    speed_process.measure({"path": "nowhere", "rows": [{}] * 3, "batch_size": 4, "seconds": 0})
    assert calls == [1, 1, 4, 1, 1, 1, 4, 4, 4]


def test_a_variant_that_cannot_be_timed_is_scored_all_the_same(typed, checkpoint, monkeypatch):
    def crash(*_):
        raise StepError("the speed of it could not be measured: no reason")

    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    monkeypatch.setattr(Bench, "measure", crash)
    done = typed("evaluate", "evaluate.metrics=[chrf]")
    assert done.returncode == 1
    assert "is scored, but could not be reported on: the speed of it could not be measured" in done.stderr
    assert "could not be scored" not in done.stderr


def test_a_model_that_crashes_or_is_not_there_is_its_own_fault_alone(bench, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(CRASHING)
    mlflow.pyfunc.save_model(tmp_path / "crashing", python_model=str(tmp_path / "model.py"), pip_requirements=[])
    variant = Variant(
        "m-1", "r", "onnx-broken", {}, {"mode": "onnx", "interface": "chat", "mode.max_batch_size": "4"}, ()
    )
    rows = prompt_set.load(FACTS)
    monkeypatch.setattr(fit, "fit", lambda variant, rows, reserve: fit.Fit())
    for folder, reason in (("crashing", "its process ended with SIGSEGV"), ("nowhere", "MlflowException")):
        copy = contextlib.nullcontext(str(tmp_path / folder))
        monkeypatch.setattr(integrity, "local_copy", lambda client, variant, copy=copy: copy)
        with pytest.raises(StepError, match=f"the speed of onnx-broken could not be measured: {reason}"):
            bench.measure(variant, rows, BRIEF)
    assert bench.machine["read_bandwidth"] > 1e8


def test_a_fork_does_not_count_the_memory_of_the_one_before():
    def peak(request):
        held = bytearray(request["bytes"])
        return {"peak": speed_process._peak_bytes(), "held": len(held)}

    large = speed_process.in_a_fork(peak, {"bytes": 10**9})
    small = speed_process.in_a_fork(peak, {"bytes": 1})
    assert large["peak"] > small["peak"] + 0.9e9


def test_the_process_gets_no_secrets(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    given = storeless_environment()
    assert "hidden" not in given.values()
    assert "PATH" in given


def test_the_machine_is_told():
    known = machine.facts()
    assert known["memory_bytes"] > 10**8
    assert json.loads(json.dumps(known)) == known


def test_evaluate_without_speed_starts_no_process_and_logs_none(typed, checkpoint):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    assert typed("evaluate", "evaluate.speed=false").returncode == 0
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    found = {name for name, _, _ in variant.metrics}
    assert "answer_match/mean" in found
    assert not any(name.startswith("speed/") for name in found)
