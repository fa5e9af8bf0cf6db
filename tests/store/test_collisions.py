"""What two processes write at the same moment."""

import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from steps.store import address, runs
from steps.store.collisions import ATTEMPTS, retried
from tests.conftest import PROJECT

THREADS = 4
DATASET = DatasetInput(Dataset("key", "digest", "local", "nowhere"), [InputTag("name", "value")])


@pytest.fixture
def things(tmp_path):
    """Return a client and the id of a run. The store has a registered version too."""
    client = mlflow.MlflowClient()
    run = client.create_run("0").info.run_id
    client.create_registered_model("phi3")
    client.create_model_version("phi3", str(tmp_path), run)
    return client, run


def writes(run):
    """Return, by method, its arguments, how to read what it wrote, and what that should be."""
    return {
        "set_tag": ((run, "key", "ours"), lambda client: client.get_run(run).data.tags["key"], "ours"),
        "set_experiment_tag": (("0", "key", "ours"), lambda client: client.get_experiment("0").tags["key"], "ours"),
        "set_model_version_tag": (
            ("phi3", "1", "key", "ours"),
            lambda client: client.get_model_version("phi3", "1").tags["key"],
            "ours",
        ),
        "set_registered_model_alias": (
            ("phi3", "key", "1"),
            lambda client: str(client.get_model_version_by_alias("phi3", "key").version),
            "1",
        ),
        "log_inputs": (
            (run, [DATASET]),
            lambda client: [entry.dataset.name for entry in client.get_run(run).inputs.dataset_inputs],
            ["key"],
        ),
    }


@pytest.mark.parametrize("method", writes(""))
def test_a_row_that_appears_after_the_look_is_no_error(things, method):
    client, run = things
    arguments, read, expected = writes(run)[method]
    collisions = []

    @event.listens_for(Engine, "before_cursor_execute")
    def write_first(connection, cursor, statement, parameters, *_):
        if statement.startswith("INSERT") and "key" in parameters and not collisions:
            collisions.append(statement)
            # The same row by another connection, with another value where that is possible.
            theirs = ["theirs" if one == "ours" else one for one in parameters]
            with sqlite3.connect(address.sqlite_file(mlflow.get_tracking_uri())) as other:
                other.execute(statement, theirs)
            other.close()

    try:
        retried(getattr(client, method), *arguments)
    finally:
        event.remove(Engine, "before_cursor_execute", write_first)
    assert len(collisions) == 1
    assert read(client) == expected


def test_steps_that_make_an_experiment_at_the_same_moment_work_in_the_same_one(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
    barrier, waited = threading.Barrier(THREADS), threading.local()
    look = mlflow.MlflowClient.get_experiment_by_name

    def look_together(*arguments):
        found = look(*arguments)
        if not hasattr(waited, "once"):
            waited.once = barrier.wait(60)
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", look_together)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: runs.experiment_id(), range(THREADS)))
    assert found == [look(mlflow.MlflowClient(), "new").experiment_id] * THREADS


@pytest.mark.parametrize(
    ("message", "calls"), [("no such run", 1), ("(psycopg.errors.UniqueViolation) duplicate key value", ATTEMPTS)]
)
def test_a_fault_is_raised(message, calls):
    """At once, or when all attempts have collided."""
    called = []

    def write(word, *, key):
        called.append((word, key))
        raise MlflowException(message)

    with pytest.raises(MlflowException, match=re.escape(message)):
        retried(write, "word", key=1)
    assert called == [("word", 1)] * calls


def test_no_step_writes_a_tag_or_an_alias_in_another_way():
    direct = re.compile(r"client\.set_(tag|experiment_tag|model_version_tag|registered_model_alias)\(")
    files = [file for file in (PROJECT / "steps").rglob("*.py") if direct.search(file.read_text())]
    assert files == []
