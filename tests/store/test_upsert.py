"""Tags and aliases that two processes write at the same moment."""

import re
import sqlite3

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from steps.store import address
from steps.store.upsert import upsert
from tests.conftest import PROJECT


@pytest.fixture
def things(tmp_path):
    """Return a client and the id of a run. The store has a registered version too."""
    client = mlflow.MlflowClient()
    run = client.create_run("0").info.run_id
    client.create_registered_model("phi3")
    client.create_model_version("phi3", str(tmp_path), run)
    return client, run


def writes(run):
    """Return, by method, its arguments and how to read what it wrote."""
    return {
        "set_tag": ((run, "key"), lambda client: client.get_run(run).data.tags["key"]),
        "set_experiment_tag": (("0", "key"), lambda client: client.get_experiment("0").tags["key"]),
        "set_model_version_tag": (
            ("phi3", "1", "key"),
            lambda client: client.get_model_version("phi3", "1").tags["key"],
        ),
        "set_registered_model_alias": (
            ("phi3", "key"),
            lambda client: str(client.get_model_version_by_alias("phi3", "key").version),
        ),
    }


@pytest.mark.parametrize("method", writes(""))
def test_a_row_that_appears_after_the_look_is_updated(things, method):
    client, run = things
    arguments, read = writes(run)[method]
    value = "1" if method == "set_registered_model_alias" else "ours"
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
        upsert(getattr(client, method), *arguments, value)
    finally:
        event.remove(Engine, "before_cursor_execute", write_first)
    assert len(collisions) == 1
    assert read(client) == value


def test_another_fault_is_raised_and_not_tried_again(things):
    client, _ = things
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        client.set_tag(*arguments)

    with pytest.raises(MlflowException, match="no-such-run"):
        upsert(counted, "no-such-run", "key", "value")
    assert len(calls) == 1


def test_no_step_writes_a_tag_or_an_alias_in_another_way():
    direct = re.compile(r"client\.set_(tag|experiment_tag|model_version_tag|registered_model_alias)\(")
    files = [file for file in (PROJECT / "steps").rglob("*.py") if direct.search(file.read_text())]
    assert files == []
