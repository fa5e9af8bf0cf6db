"""The smoke test with a real `mlflow models serve`: a pass, a failure, and a kill."""

import os
import subprocess
import sys
import time

import mlflow
import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException

from steps import command_line
from steps.evaluation import prompt_set
from steps.evaluation.asking import loaded
from steps.interfaces import get_interface
from steps.promotion import history, registry, serving, smoke
from steps.store.variants import find_variants
from tests.conftest import PROJECT, SPAIN
from tests.promotion.store import copied, write_scorecard

QUESTIONS = [SPAIN, "What is the capital of France?", "What is the capital of Italy?", "Say: yes"]


@pytest.fixture(scope="module")
def store(built, tmp_path_factory):
    """Two variants with their answers recorded; one recorded answer of the better variant is wrong."""
    folder = tmp_path_factory.mktemp("smoke")
    path = folder / "rows.jsonl"
    lines = [
        f'{{"id": "{number}", "prompt": "{text}", "target": "yes"}}\n' for number, text in enumerate(QUESTIONS * 16)
    ]
    path.write_text("".join(lines))
    overrides = ["prompt_set.name=made", f"prompt_set.path={path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", copied(built, folder))
        rows = prompt_set.load(command_line.compose("register", overrides).prompt_set)
        right, wrong, *_ = find_variants(mlflow.MlflowClient(), "0")
        with loaded(right.uri) as model:
            replies = model.predict([{"messages": row.conversation} for row in rows.rows])
        texts = [reply["choices"][0]["message"]["content"] for reply in replies]
        write_scorecard(right, rows, 5, texts)
        write_scorecard(wrong, rows, 7, [*texts[:56], "Never said.", *texts[57:]])
    return folder, overrides, right.model_id


def test_a_version_becomes_champion_only_if_it_answers_as_recorded(store, typed, monkeypatch, tmp_path, figure):
    folder, overrides, right = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    killed_while_serving(overrides, tmp_path)
    known = registry.read(mlflow.MlflowClient(), "phi3")
    assert known.aliases == {}

    # 8 rows of 64, every eighth: the 57th is among them. The same register goes on with the next best.
    done = typed("register", *overrides)
    assert done.returncode == 0, done.stderr
    assert "is rejected: smoke test: row 56 was answered 'Never said.' when it was scored and 'The" in done.stdout
    assert "Promoted onnx-int4-chat-max12 to phi3@champion (version 2)" in done.stdout
    assert "(version 1) was rejected: smoke test: row 56" in done.stdout
    known = registry.read(mlflow.MlflowClient(), "phi3")
    assert [version.number for version in known.versions if version.rejected] == ["1"]
    assert known.champion.model_id == right
    assert known.champion.tags["phi3.smoke"].startswith("passed ")
    run = mlflow.MlflowClient().get_run(history.changes(known)[-1].run_id)
    content = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/promotion.json")
    (rejected,) = content["rejected"]
    assert rejected.startswith("onnx-int4-chat-max13 (version 1) was rejected")

    done = typed("register", *overrides)
    assert "Nothing changes: the champion onnx-int4-chat-max12 is already the best" in done.stdout
    assert "Smoke test" not in done.stdout
    figure("smoke: 1 killed, 1 rejected, 1 passed, 0 repeated")
    assert [change.version for change in history.changes(known)] == ["2"]


def test_register_fails_only_if_every_candidate_is_rejected(store, typed, monkeypatch, tmp_path):
    folder, overrides, _ = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied(folder, tmp_path / "all"))
    client = mlflow.MlflowClient()
    for version in registry.read(client, "phi3").versions:
        client.delete_model_version("phi3", version.number)
    monkeypatch.setattr(smoke, "find_fault", lambda *arguments: "it broke the contract: 'n'")
    # With retry_rejected, each candidate is still tried only once in a run.
    done = typed("register", *overrides, "promotion.retry_rejected=true")
    assert done.returncode == 1
    assert done.stdout.count("is rejected: smoke test: it broke the contract: 'n'") == 2
    assert done.stderr.startswith("error: No scored candidate is left")
    assert done.stderr.count("was rejected: smoke test: it broke the contract: 'n'.") == 2
    known = registry.read(client, "phi3")
    assert known.aliases == {}
    assert all(version.rejected for version in known.versions)
    run = client.search_runs(["0"], order_by=["attributes.start_time DESC"])[0]
    assert run.info.status == "FAILED"
    content = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/promotion.json")
    assert not content["decision"]["promoted"]
    assert len(content["rejected"]) == 2


def killed_while_serving(overrides, folder):
    """Kill register with -9 while it serves a version; check that the server and its files are gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "steps.register", *overrides],
        cwd=PROJECT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert "serving it" in process.stdout.readline()
        family = _wait_for(lambda: _server_family(process.pid))
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert {child.pid for child in gone} == {child.pid for child in family}
    assert alive == []
    assert list(folder.glob("phi3-smoke-*")) == []


def _server_family(pid):
    """Return the watcher that register started, and its server; empty until both are there."""
    watchers = [child for child in psutil.Process(pid).children() if "watcher.py" in " ".join(child.cmdline())]
    servers = [server for watcher in watchers for server in watcher.children()]
    return [*watchers, *servers] if servers else []


def _wait_for(condition):
    while not (result := condition()):
        time.sleep(0.05)
    return result


def test_a_model_that_cannot_be_loaded_is_reported_with_the_servers_last_line():
    with (
        pytest.raises(serving.NotLoaded, match=r"it could not be served: .*nowhere"),
        serving.served("models:/nowhere/1", get_interface("chat"), 90),
    ):
        pass


@pytest.mark.parametrize("failure", ["never up", "disk full"])
def test_machine_failure_does_not_reject_a_version(store, typed, monkeypatch, tmp_path, failure):
    folder, overrides, _ = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied(folder, tmp_path / "copy"))
    if failure == "disk full":
        command = [sys.executable, "-c", "raise OSError(28, 'No space left on device')"]
        monkeypatch.setattr(serving, "serve_command", lambda uri, port: command)
    client = mlflow.MlflowClient()
    for version in registry.read(client, "phi3").versions:
        client.delete_model_version("phi3", version.number)
    done = typed("register", *overrides, "promotion.smoke_seconds=1")
    reason = {"never up": "it was not up within promotion.smoke_seconds=1", "disk full": "No space left on device"}
    assert done.returncode == 1
    assert f"could not be smoke-tested: {reason[failure]}" in done.stderr.replace(
        "it could not be served: OSError: [Errno 28] ", ""
    )
    (version,) = registry.read(client, "phi3").versions
    assert version.rejected is None
    assert registry.read(client, "phi3").aliases == {}


class Reply:
    """A server's reply with status 200, or the one given."""

    def __init__(self, content, status_code=200):
        self._content, self.status_code = content, status_code

    def json(self):
        return self._content

    def raise_for_status(self):
        assert self.status_code == 200


class Session:
    """A session that gives these replies in turn and keeps the bodies of the requests."""

    def __init__(self, *replies):
        self._replies, self.bodies, self.closed = iter(replies), [], False

    def post(self, address, json, timeout):
        assert address == "http://127.0.0.1:1/invocations"
        self.bodies.append(json)
        return next(self._replies)

    def close(self):
        self.closed = True


def test_requests_and_replies_of_a_served_model_have_the_shapes_of_a_loaded_one():
    session = Session(Reply([{"a": 1}]), Reply({"predictions": [{"a": 1}, {"a": 2}]}))
    chat = serving.Served(1, get_interface("chat"), session)
    assert chat.predict({"messages": []}) == [{"a": 1}]
    frame = pd.DataFrame([{"messages": [], "seed": 1}, {"messages": []}])
    assert chat.predict(frame) == [{"a": 1}, {"a": 2}]
    assert session.bodies == [{"messages": []}, {"inputs": [{"messages": [], "seed": 1}, {"messages": []}]}]
    chat.close()
    assert session.closed

    session = Session(Reply({"predictions": ["yes"]}), Reply({"predictions": "yes"}))
    prompt = serving.Served(1, get_interface("prompt"), session)
    assert prompt.predict({"prompt": "?"}) == ["yes"]
    assert prompt.predict({"prompt": "?"}, {"seed": 1}) == "yes"
    assert session.bodies == [{"inputs": {"prompt": "?"}}, {"inputs": {"prompt": "?"}, "params": {"seed": 1}}]


def test_a_served_models_refusal_is_mlflows_exception():
    server = serving.Served(1, get_interface("chat"), Session(Reply({"message": "n must be at most 8"}, 400)))
    with pytest.raises(MlflowException, match="n must be at most 8") as refusal:
        server.predict({"messages": []})
    assert refusal.value.get_http_status_code() == 400
