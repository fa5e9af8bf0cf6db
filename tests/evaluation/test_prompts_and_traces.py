"""Prompts and traces in MLflow's own views."""

import sys
import time

import mlflow
import pytest
from filelock import Timeout
from mlflow.tracing.client import TracingClient

from steps import command_line
from steps.build import build
from steps.config.schema import Example, Prompting
from steps.evaluation import traces
from steps.store import prompts

QUESTIONS = """\
{"id": "spain", "prompt": "What is the capital of Spain?", "target": "Madrid", "tags": ["capital"]}
{"id": "hot", "prompt": "What is the opposite of hot?", "target": ["cold", "icy"]}
"""


def test_the_template_is_the_conversation_before_a_question():
    prompting = Prompting("mine", "Be brief.", [Example("Wet?", "Dry.")])
    assert prompts.template(prompting) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wet?"},
        {"role": "assistant", "content": "Dry."},
        {"role": "user", "content": "{{question}}"},
    ]
    assert prompts.template(Prompting("plain")) == [{"role": "user", "content": "{{question}}"}]


def test_a_new_prompt_is_a_new_version_and_a_known_one_is_linked_again(checkpoint):
    built = []
    for text in ("Be brief.", "Be polite.", "Be brief."):
        overrides = ["mode=onnx", "prompting=brief", f"prompting.system={text}", f"generation.top_k={len(built)}"]
        built.append(build(command_line.compose("build", overrides), checkpoint))
    client = mlflow.MlflowClient()
    prompts = client.search_prompt_versions("phi3.prompting.brief")
    versions = {prompt.version: prompt.template[0]["content"] for prompt in prompts}
    assert versions == {1: "Be brief.", 2: "Be polite."}
    for model_id, version in zip(built, ("1", "2", "1"), strict=True):
        model = client.get_logged_model(model_id)
        expected = f'[{{"name": "phi3.prompting.brief", "version": "{version}"}}]'
        assert model.tags["mlflow.linkedPrompts"] == expected
        assert client.get_run(model.source_run_id).data.tags["mlflow.linkedPrompts"] == expected


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(QUESTIONS)
    return [f"prompt_set.path={file}", "evaluate.speed=false", "evaluate.metrics=[answer_match,chrf]"]


@pytest.mark.slow
def test_each_row_has_one_trace_with_its_scores(typed, checkpoint, questions, monkeypatch):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models(["0"])
    assert typed("evaluate", *questions, "evaluate.traces=false").returncode == 0
    assert _traces(model.source_run_id) == []
    # A scored variant is only traced. After it is scored again each row still has one trace.
    assert "Scored" not in typed("evaluate", *questions).stdout
    assert len(_traces(model.source_run_id)) == 2
    assert "All variants are already scored" in typed("evaluate", *questions).stdout
    assert typed("evaluate", *questions, "evaluate.traces=true", f"run_id={model.source_run_id}").returncode == 0
    by_row = {trace.info.tags["row"]: trace for trace in _traces(model.source_run_id)}
    assert set(by_row) == {"spain", "hot"}
    assert all(trace.data.spans[0].end_time_ns <= time.time_ns() for trace in by_row.values())
    spain = by_row["spain"]
    assert spain.info.trace_metadata["mlflow.modelId"] == model.model_id
    assert spain.data.spans[0].inputs == {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    assert "Madrid" in spain.data.spans[0].outputs["choices"][0]["message"]["content"]
    assessments = {assessment.name: assessment for assessment in spain.info.assessments}
    assert assessments["answer_match"].value == 1.0
    assert 0 < assessments["chrf"].value <= 1
    assert assessments["target"].value == ["Madrid"]
    assert "All variants are already scored" in typed("evaluate", *questions, "evaluate.traces=true").stdout
    evaluations = mlflow.search_runs(filter_string="run_name = 'evaluate-questions'", output_format="list")
    assert [len(_traces(run.info.run_id)) for run in evaluations] == [2, 0, 0]
    _delete(_traces(model.source_run_id)[:1])
    # Killed after the new traces are written and before the earlier one is deleted.
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "delete_traces", lambda *_, **__: sys.exit(99))
        assert typed("evaluate", *questions, "evaluate.traces=true").returncode == 99
    assert len(_traces(model.source_run_id)) == 3
    assert typed("evaluate", *questions, "evaluate.traces=true").returncode == 0
    assert len(_traces(model.source_run_id)) == 2


@pytest.mark.slow
def test_one_process_at_a_time_writes_the_traces_of_the_same_rows(typed, checkpoint, questions, monkeypatch):
    """Another one would take those that are not complete for earlier ones, and delete them."""
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    log, log_spans, held = traces.log, TracingClient.log_spans, []

    def log_and_look(variant, rows, *rest):
        def look(client, *spans):
            with pytest.raises(Timeout):
                traces.lock(variant, rows).acquire(timeout=0)
            held.append(True)
            return log_spans(client, *spans)

        monkeypatch.setattr(TracingClient, "log_spans", look)
        log(variant, rows, *rest)
        with traces.lock(variant, rows).acquire(timeout=0):
            pass  # nobody holds it any more

    monkeypatch.setattr(traces, "log", log_and_look)
    done = typed("evaluate", *questions)
    assert done.returncode == 0, done.stderr
    assert held == [True]


def test_traces_follow_one_another_and_none_lies_in_the_future():
    now = time.time_ns()
    first, last = traces.timeline([None, "too long", None], [60_000.0, None, 30_000.0], now)
    assert first == (0, now - 90 * 10**9, now - 30 * 10**9)
    assert last == (2, now - 30 * 10**9, now)
    assert list(traces.timeline([None], [None], now)) == [(0, now, now)]


def _delete(logged):
    mlflow.MlflowClient().delete_traces("0", trace_ids=[trace.info.trace_id for trace in logged])


def _traces(run_id):
    return mlflow.search_traces(locations=["0"], run_id=run_id, return_type="list")
