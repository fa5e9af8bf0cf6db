"""Traces of two variants pair row by row, as MLflow's comparison of evaluations needs it: by their inputs."""

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
def test_traces_of_two_variants_have_the_same_inputs_row_by_row(variants, tmp_path):
    overrides = [f"prompt_set.path={write_prompt_set(tmp_path / 'rows.jsonl', 'traces')}"]
    rows = prompt_set.load(command_line.compose("register", overrides).prompt_set)
    inputs = []
    for variant, eighths in zip(variants, (3, 5), strict=True):
        write_scorecard(variant, rows, eighths)
        with runs.reopen(variant.run_id):
            traces.log(variant, rows, scorecard.read(variant, rows.sha256), [None] * len(rows.rows))
        found = mlflow.search_traces(locations=["0"], run_id=variant.run_id, return_type="list")
        inputs.append({trace.info.tags["row"]: trace.data.request for trace in found})
    assert len(inputs[0]) == len(rows.rows)
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0].values())) == len(rows.rows)
