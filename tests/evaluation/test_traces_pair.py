"""Traces of two variants pair row by row, as `mlflow.genai.compare_evaluations` of MLflow 3.18 pairs them."""

import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from steps import command_line
from steps.evaluation import prompt_set, scorecard, traces
from steps.store import runs
from steps.store.variants import find_variants
from tests.promotion.conftest import built  # noqa: F401  a fixture
from tests.promotion.store import copied, write_prompt_set, write_scorecard


@pytest.fixture
def variants(built, tmp_path, monkeypatch):  # noqa: F811  the fixture
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied(built, tmp_path / "copy"))
    return find_variants(mlflow.MlflowClient(), "0")[:2]


# MLflow says this when its tracing is first imported in a process.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
@pytest.mark.slow
def test_traces_of_two_variants_have_the_same_inputs_row_by_row(variants, tmp_path):
    overrides = [f"prompt_set.path={write_prompt_set(tmp_path / 'rows.jsonl', 'traces')}"]
    rows = prompt_set.load(command_line.compose("register", overrides).prompt_set)
    by_key = []
    for variant, eighths in zip(variants, (3, 5), strict=True):
        write_scorecard(variant, rows, eighths)
        with runs.reopen(variant.run_id):
            traces.log(variant, rows, scorecard.read(variant, rows.sha256), [None] * len(rows.rows))
        logged = mlflow.search_traces(locations=["0"], run_id=variant.run_id, return_type="list")
        by_key.append({keys(trace): trace for trace in logged})
        assert len(logged) == len(by_key[-1]) == len(rows.rows)
    assert by_key[0].keys() == by_key[1].keys()
    pairs = [(trace, by_key[1][key]) for key, trace in by_key[0].items()]
    assert all(ours.info.tags["row"] == theirs.info.tags["row"] for ours, theirs in pairs)
    scored = [[feedback(trace, variant) for trace, variant in zip(pair, variants, strict=True)] for pair in pairs]
    assert [sum(values) / len(scored) for values in zip(*scored, strict=True)] == [3 / 8, 5 / 8]


@pytest.mark.slow
def test_rows_that_ask_the_same_pair_by_their_id(variants, tmp_path):
    path = Path(tmp_path / "twice.jsonl")
    path.write_text("".join(json.dumps({"id": row_id, "prompt": "Same?", "target": "yes"}) + "\n" for row_id in "ab"))
    rows = prompt_set.load(command_line.compose("register", [f"prompt_set.path={path}"]).prompt_set)
    write_scorecard(variants[0], rows, 4)
    with runs.reopen(variants[0].run_id):
        traces.log(variants[0], rows, scorecard.read(variants[0], rows.sha256), [None, None])
    logged = mlflow.search_traces(locations=["0"], run_id=variants[0].run_id, return_type="list")
    assert len({keys(trace)[0] for trace in logged}) == 2


def keys(trace):
    """Return what MLflow pairs a row by: first the id of the request, then the hash of the root span's inputs."""
    inputs = json.dumps(trace.data.spans[0].inputs, sort_keys=True, default=str)
    return trace.info.tags["mlflow.eval.requestId"], hashlib.sha256(inputs.encode()).hexdigest()


def feedback(trace, variant):
    """Return the score that MLflow compares: feedback without an error, of the trace's own run."""
    (value,) = [
        assessment.feedback.value
        for assessment in trace.info.assessments
        if assessment.name == "answer_match" and assessment.run_id in (None, variant.run_id)
    ]
    return value
