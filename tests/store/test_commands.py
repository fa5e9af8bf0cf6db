"""The commands that a step suggests are typed as the user started the step."""

import mlflow
import pytest

from steps.config.paths import PROJECT
from steps.store import commands
from steps.store.commands import serve_command, step_command


@pytest.fixture
def project_run(monkeypatch):
    """Return a function that makes this process a step of a run of `mlflow run`."""

    def start(source=str(PROJECT), manager=None, experiment="Default", **variables):
        client = mlflow.MlflowClient()
        known = client.get_experiment_by_name(experiment)
        run = client.create_run(known.experiment_id if known else client.create_experiment(experiment))
        tags = {"mlflow.source.name": source} | ({"mlflow.project.env": manager} if manager else {})
        for key, value in tags.items():
            client.set_tag(run.info.run_id, key, value)
        variables["MLFLOW_RUN_ID"] = run.info.run_id
        monkeypatch.setattr(commands.psutil.Process, "environ", lambda _: variables)
        monkeypatch.setattr(commands, "user_directory", lambda: PROJECT)

    return start


def test_a_step_that_python_started_suggests_python():
    assert step_command("evaluate", "run_id=3", "prompting.system=Be brief.") == (
        "python -m steps.evaluate run_id=3 'prompting.system=Be brief.'"
    )
    assert serve_command("models:/phi3@champion") == (
        "mlflow models serve -m models:/phi3@champion --env-manager local --port 5001"
    )


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({}, "mlflow run . -e evaluate --env-manager local -P 'a=b c'"),
        ({"manager": "conda"}, "mlflow run . -e evaluate -P 'a=b c'"),
        ({"manager": "uv"}, "mlflow run . -e evaluate --env-manager uv -P 'a=b c'"),
        (
            {"manager": "conda", "experiment": "my team"},
            "mlflow run . -e evaluate --experiment-name 'my team' -P 'a=b c'",
        ),
        (
            {"source": "https://user:secret@example.org/p#sub"},
            "mlflow run 'https://example.org/p#sub' -e evaluate --env-manager local -P 'a=b c'",
        ),
    ],
)
def test_a_step_of_a_project_run_suggests_the_same_kind_of_run(project_run, run, expected):
    project_run(**run)
    assert step_command("evaluate", "a=b c") == expected
    manager = run.get("manager", "local")
    assert serve_command("models:/m@champion").endswith(f" --env-manager {manager} --port 5001")


def test_the_main_job_needs_no_entry_point_and_a_project_elsewhere_is_named(project_run, monkeypatch, tmp_path):
    folder = tmp_path / "the project"
    folder.mkdir()
    project_run(source=str(folder), manager="uv")
    assert step_command("main") == "mlflow run . --env-manager uv"
    monkeypatch.setattr(commands, "user_directory", lambda: tmp_path)
    assert step_command("main") == f"mlflow run '{folder}' --env-manager uv"


def test_an_experiment_of_the_users_shell_needs_no_option(project_run):
    """The variable is in the environment that the process began with."""
    project_run(manager="conda", experiment="team", MLFLOW_EXPERIMENT_NAME="team")
    assert step_command("register") == "mlflow run . -e register"
