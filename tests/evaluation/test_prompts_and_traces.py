"""MLflow's own views of prompts and traces."""

import sys
import time
from types import SimpleNamespace

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.config.schema import Example, Prompting
from steps.evaluation import traces as view
from steps.store import prompts

QUESTIONS = """\
{"id": "spain", "prompt": "What is the capital of Spain?", "target": "Madrid", "tags": ["capital"]}
{"id": "hot", "prompt": "What is the opposite of hot?", "target": ["cold", "icy"]}
"""


def test_the_template_is_the_conversation_that_a_model_sees():
    prompting = Prompting("mine", "Be brief.", [Example("Wet?", "Dry.")])
    assert prompts.template(prompting) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wet?"},
        {"role": "assistant", "content": "Dry."},
        {"role": "user", "content": "{{question}}"},
    ]
    assert prompts.template(Prompting("plain")) == [{"role": "user", "content": "{{question}}"}]


def test_a_new_text_is_a_new_version_and_a_known_one_is_linked_again(checkpoint):
    built = []
    for text in ("Be brief.", "Be polite.", "Be brief."):
        overrides = ["mode=onnx", "prompting=brief", f"prompting.system={text}", f"generation.top_k={len(built)}"]
        built.append(build(command_line.compose("build", overrides), checkpoint))
    client = mlflow.MlflowClient()
    versions = {prompt.version: prompt.template[0]["content"] for prompt in client.search_prompt_versions("phi3-brief")}
    assert versions == {1: "Be brief.", 2: "Be polite."}
    for model_id, version in zip(built, ("1", "2", "1"), strict=True):
        model = client.get_logged_model(model_id)
        expected = f'[{{"name": "phi3-brief", "version": "{version}"}}]'
        assert model.tags["mlflow.linkedPrompts"] == expected
        assert client.get_run(model.source_run_id).data.tags["mlflow.linkedPrompts"] == expected


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(QUESTIONS)
    return [f"prompt_set.path={file}", "evaluate.speed=false", "evaluate.metrics=[answer_match,chrf]"]


def test_each_row_has_one_trace_with_its_scores(typed, checkpoint, questions, monkeypatch):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models(["0"])
    assert typed("evaluate", *questions).returncode == 0
    assert _traces(model.source_run_id) == []
    # Scored already, so it is only traced; scored again, each row still has one trace.
    assert "Scored" not in typed("evaluate", *questions, "evaluate.traces=true").stdout
    assert len(_traces(model.source_run_id)) == 2
    assert typed("evaluate", *questions, "evaluate.traces=true", f"run_id={model.source_run_id}").returncode == 0
    traces = {trace.info.tags["row"]: trace for trace in _traces(model.source_run_id)}
    assert set(traces) == {"spain", "hot"}
    spain = traces["spain"]
    assert spain.info.trace_metadata["mlflow.modelId"] == model.model_id
    assert spain.data.spans[0].inputs == {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    assert "Madrid" in spain.data.spans[0].outputs["choices"][0]["message"]["content"]
    assessments = {assessment.name: assessment for assessment in spain.info.assessments}
    assert assessments["answer_match"].value == 1.0
    assert 0 < assessments["chrf"].value <= 1
    assert assessments["target"].value == ["Madrid"]
    assert "Every variant has a scorecard" in typed("evaluate", *questions, "evaluate.traces=true").stdout
    _delete(_traces(model.source_run_id)[:1])
    # Killed when the new ones are written and the one before is not yet deleted.
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "delete_traces", lambda *_, **__: sys.exit(99))
        assert typed("evaluate", *questions, "evaluate.traces=true").returncode == 99
    assert len(_traces(model.source_run_id)) == 3
    assert typed("evaluate", *questions, "evaluate.traces=true").returncode == 0
    assert len(_traces(model.source_run_id)) == 2


def test_no_trace_is_of_the_future_which_mlflow_s_view_does_not_show(monkeypatch):
    logged = []
    monkeypatch.setattr(view, "_of", lambda *_: list(logged))
    monkeypatch.setattr(view, "_log_row", lambda *given: logged.append(given[-2:]))
    view.log(None, None, SimpleNamespace(skipped=[None, "too long", None]), [60_000.0, None, 30_000.0])
    (first, lasted), (second, rest) = logged
    assert (lasted, rest, second - first) == (60 * 10**9, 30 * 10**9, 60 * 10**9)
    assert second + rest <= time.time_ns()


def _delete(traces):
    mlflow.MlflowClient().delete_traces("0", trace_ids=[trace.info.trace_id for trace in traces])


def _traces(run_id):
    return mlflow.search_traces(locations=["0"], run_id=run_id, return_type="list")
