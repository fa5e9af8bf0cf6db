"""Speed and memory: what a fresh process measures of a model, and what happens if the model fails there."""

import contextlib
import json

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.config.schema import Evaluation, PromptSet
from steps.errors import StepError
from steps.evaluation import machine, prompt_set, speed, speed_process
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.speed import Bench
from steps.modes import get_mode
from steps.output import suppress_output
from steps.store import integrity, runs
from steps.store.child_process import storeless_environment
from steps.store.variants import find_variants
from tests.support import EchoModel, make_prompt_set, make_variant

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
    opened = Bench([get_mode("onnx")])
    yield opened
    opened.close()


@pytest.mark.parametrize("interface", ["chat", pytest.param("prompt", marks=pytest.mark.slow)])
def test_a_variant_is_measured_and_its_medians_are_logged(bench, checkpoint, interface):
    build(command_line.compose("build", ["mode=onnx", "mode.max_batch_size=4", f"interface={interface}"]), checkpoint)
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    measured = bench.measure(variant, prompt_set.load(FACTS), BRIEF)
    with runs.reopen(variant.run_id):
        speed.log(variant, prompt_set.load(FACTS), measured, bench.machine)
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    metrics = {name: value for name, _, value in variant.metrics}
    # The questions of another prompt set would give other numbers.
    sha256 = prompt_set.load(FACTS).sha256
    assert {digest for name, digest, _ in variant.metrics if name.startswith("speed/")} == {sha256[:16]}
    assert {f"speed/{name}" for name in NAMES} <= set(metrics)
    assert all(value > 0 for value in metrics.values())
    assert metrics["speed/latency_p50_ms"] <= metrics["speed/latency_p95_ms"]
    assert metrics["memory/peak_mb"] > 50
    assert all(1 <= tokens <= BRIEF.speed_tokens for _, tokens in measured["single"])
    assert all(tokens > 4 for _, tokens in measured["batched"])
    assert len(measured["loads"]) > speed_process.MINIMUM_CALLS
    calls = mlflow.artifacts.load_dict(f"runs:/{variant.run_id}/{speed.file(sha256)}")
    assert calls["machine"]["cores"] >= 1
    assert len(calls["single"]) >= speed_process.MINIMUM_CALLS


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
    metrics = speed.metrics(measured, {"read_bandwidth": 10**11}, on_gpu=False)
    assert metrics["speed/load_seconds"] == pytest.approx(2)
    assert metrics["speed/tokens_per_second"] == pytest.approx(50)
    assert metrics["speed/batch_tokens_per_second"] == pytest.approx(200)
    assert metrics["speed/time_to_first_token_ms"] == pytest.approx(20)
    assert metrics["speed/latency_p50_ms"] == pytest.approx(200)
    assert metrics["speed/bandwidth_fraction"] == pytest.approx(0.5)
    assert metrics["memory/peak_mb"] == pytest.approx(3000)
    on_gpu = speed.metrics(measured | {"gpu_peak_bytes": 5}, {"read_bandwidth": 10**11}, on_gpu=True)
    assert "speed/bandwidth_fraction" not in on_gpu
    assert on_gpu["memory/gpu_peak_mb"] > 0


def test_calls_are_logged_before_their_medians(monkeypatch):
    logged = []
    monkeypatch.setattr(speed, "metrics", lambda *_: {})
    for name in ("log_dict", "log_metrics"):
        monkeypatch.setattr(mlflow, name, lambda *_, name=name, **__: logged.append(name))
    speed.log(make_variant(), make_prompt_set("q"), {}, {})
    assert logged == ["log_dict", "log_metrics"]


def _no_room(monkeypatch, *indices, **others):
    """Have the context check find these rows too long."""
    check = ContextCheck(too_long=dict.fromkeys(indices, "no"), **others)
    monkeypatch.setattr(speed, "context_check", lambda variant, rows, reserve: check)


def test_the_questions_are_from_all_over_the_rows_that_fit(monkeypatch):
    rows = make_prompt_set(*map(str, range(100)))
    _no_room(monkeypatch, *range(0, 100, 6), control_tokens={1: "no"}, unaskable={2: "no"}, prompts={3: "as one text"})
    questions = speed.sample_questions(make_variant(name="v"), rows, 8)
    numbers = [int(question.messages[0]["content"]) for question in questions]
    assert len(numbers) == speed.QUESTIONS
    assert not set(numbers) & {1, 2, *range(0, 100, 6)}
    assert (numbers[0], numbers[-1] > 80) == (3, True)
    assert [question.prompt for question in questions] == ["as one text", *map(str, numbers[1:])]


def test_a_prompt_set_with_no_row_that_fits_cannot_be_timed(monkeypatch):
    _no_room(monkeypatch, *range(100))
    with pytest.raises(StepError, match="the speed of v could not be measured: none of 100 rows fits it"):
        speed.sample_questions(make_variant(name="v"), make_prompt_set(*map(str, range(100))), 8)


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measure a fake model with a batch of 4 and three questions."""

    def run(model, mode="onnx", interface="chat"):
        with suppress_output():  # MLflow's first import
            monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda path: model)
        questions = [{"messages": [{"role": "user", "content": text}], "prompt": text} for text in ("a", "b", "c d")]
        request = {"path": str(tmp_path), "mode": mode, "interface": interface, "questions": questions}
        return speed_process.measure(request | {"batch_size": 4, "max_tokens": 6, "seconds": 0})

    return run


def test_a_batch_is_warmed_up_too(measure):
    model = EchoModel()
    measured = measure(model)
    assert model.sizes == [1, 1, 4, 1, 1, 1, 4, 4, 4]
    assert all(row["max_tokens"] == 6 for rows, _ in model.calls for row in rows)
    assert [tokens for _, tokens in measured["single"]] == [1, 1, 2]
    assert [tokens for _, tokens in measured["batched"]] == [5, 5, 5]
    assert len(measured["first_token"]) == 3


def test_the_stock_flavour_is_timed_without_batches_and_streams(measure):
    model = EchoModel(in_list=True)
    measured = measure(model, "transformers")
    caps = [row["max_tokens"] for rows, _ in model.calls for row in rows]
    assert model.sizes == [1] * 8
    assert caps == [6] * 5 + [1] * 3
    assert measured["batched"] == measured["single"]


def test_a_model_without_settings_has_no_time_to_first_token(measure, checkpoint, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((checkpoint.directory / "tokenizer.json").read_bytes())
    model = EchoModel(in_list=True)
    measured = measure(model, "transformers", "prompt")
    assert model.calls == [([{"prompt": text}], None) for text in ("a", "b", "a", "b", "c d")]
    assert measured["first_token"] == []
    assert all(tokens >= 2 for _, tokens in measured["single"])


def test_a_variant_that_cannot_be_timed_is_scored_all_the_same(typed, checkpoint, monkeypatch):
    def crash(*_):
        raise StepError("the speed of it could not be measured: no reason")

    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    monkeypatch.setattr(Bench, "measure", crash)
    done = typed("evaluate", "evaluate.metrics=[chrf]")
    assert done.returncode == 1
    assert "is scored, but its report could not be finished: the speed of it could not be measured" in done.stderr
    assert "could not be scored" not in done.stderr


def test_a_model_that_crashes_or_is_missing_fails_only_its_own_measurement(bench, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(CRASHING)
    mlflow.pyfunc.save_model(tmp_path / "crashing", python_model=str(tmp_path / "model.py"), pip_requirements=[])
    variant, rows = make_variant(name="onnx-broken", overrides=["mode.max_batch_size=4"]), make_prompt_set("a")
    _no_room(monkeypatch)
    for folder, reason in (("crashing", "its process ended with SIGSEGV"), ("nowhere", "MlflowException")):
        copy = contextlib.nullcontext(str(tmp_path / folder))
        monkeypatch.setattr(integrity, "local_copy", lambda client, variant, copy=copy: copy)
        with pytest.raises(StepError, match=f"the speed of onnx-broken could not be measured: {reason}"):
            bench.measure(variant, rows, BRIEF)
    assert bench.machine["read_bandwidth"] > 1e8


def test_a_fork_does_not_count_the_memory_of_the_one_before():
    def peak(request):
        held = bytearray(request["bytes"])
        return {"peak": speed_process.peak_bytes(), "held": len(held)}

    large = speed_process.in_a_fork(peak, {"bytes": 10**9})
    small = speed_process.in_a_fork(peak, {"bytes": 1})
    assert large["peak"] > small["peak"] + 0.9e9


def test_the_process_gets_no_secrets(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    environment = storeless_environment()
    assert "hidden" not in environment.values()
    assert "PATH" in environment


def test_the_facts_about_the_machine_can_be_written():
    facts = machine.facts()
    assert facts["memory_bytes"] > 10**8
    assert json.loads(json.dumps(facts)) == facts


def test_evaluate_without_speed_starts_no_process_and_logs_none(typed, checkpoint):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    assert typed("evaluate", "evaluate.speed=false").returncode == 0
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    logged = {name for name, _, _ in variant.metrics}
    assert "answer_match/mean" in logged
    assert not any(name.startswith("speed/") for name in logged)
