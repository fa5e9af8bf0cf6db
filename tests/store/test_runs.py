"""A step's run: its name and its experiment."""

import os

import mlflow
import pytest

from steps.store import connection, runs

NAMES = {
    "none": (None, "build"),
    "random": ("bold-cat-123", "build"),
    "from the user": ("weekly check", "weekly check"),
    "from the user, with a number": ("weekly-check-12", "weekly-check-12"),
    "from the user, like a step's": ("evaluate-facts", "evaluate-facts"),
}


@pytest.mark.parametrize(("given", "expected"), NAMES.values(), ids=NAMES)
def test_a_run_keeps_the_name_that_the_user_has_given_it(monkeypatch, given, expected):
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", run_name=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with runs.start("build"):
        pass
    run = client.get_run(run_id)
    assert run.info.run_name == run.data.tags["mlflow.runName"] == expected


def test_the_runs_inside_a_named_run_have_names_of_their_own(monkeypatch):
    run_id = mlflow.MlflowClient().create_run("0", run_name="weekly check").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with runs.start("main"), runs.start("evaluate-facts") as inner:
        assert inner.info.run_name == "evaluate-facts"


@pytest.mark.parametrize("other", ["there already", "not there yet"])
def test_a_step_works_in_the_experiment_of_its_run(monkeypatch, other):
    """`mlflow run --experiment-name chosen` leaves the variable of the user's shell as it is."""
    client = mlflow.MlflowClient()
    chosen = client.create_experiment("chosen")
    if other == "there already":
        client.create_experiment(other)
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(chosen).info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", chosen)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", other)
    connection.connect()
    assert runs.experiment_id() == chosen
    with runs.start("main"), runs.start("evaluate") as inner:
        assert inner.info.experiment_id == chosen
    assert "MLFLOW_EXPERIMENT_NAME" not in os.environ
