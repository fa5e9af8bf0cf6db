"""The smoke test with a real `mlflow models serve`: what passes, what fails, and what a kill leaves behind."""

import os
import subprocess
import sys
import time

import mlflow
import psutil
import pytest

from steps import command_line
from steps.evaluation import answers, prompt_set
from steps.promotion import history, registry, smoke
from steps.store.variants import find_variants
from tests.conftest import PROJECT, SPAIN
from tests.promotion.store import copied, write_scorecard

QUESTIONS = [SPAIN, "What is the capital of France?", "What is the capital of Italy?", "Say: yes"]


@pytest.fixture(scope="module")
def store(built, tmp_path_factory):
    """Two variants with their true answers; of the better one's one is not what it says."""
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
        with answers.loaded(right.uri) as model:
            replies = model.predict([{"messages": row.conversation} for row in rows.rows])
        said = [reply["choices"][0]["message"]["content"] for reply in replies]
        write_scorecard(right, rows, 5, said)
        write_scorecard(wrong, rows, 7, [*said[:56], "Never said.", *said[57:]])
    return folder, overrides, right.model_id


def test_a_version_becomes_champion_only_if_it_answers_as_it_did(store, typed, monkeypatch, tmp_path, figure):
    folder, overrides, right = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    killed_while_serving(overrides, tmp_path)
    known = registry.read(mlflow.MlflowClient(), "phi3")
    assert known.aliases == {}

    # 8 rows of 64, every eighth: the 57th is among them
    done = typed("register", *overrides)
    assert done.returncode == 1
    assert "is rejected: smoke test: row 56 was answered 'Never said.' when it was scored and 'The" in done.stderr
    known = registry.read(mlflow.MlflowClient(), "phi3")
    assert known.aliases == {}
    assert [version.number for version in known.versions if version.rejected] == ["1"]

    done = typed("register", *overrides)
    assert done.returncode == 0, done.stderr
    assert "Promoted onnx-int4-chat to phi3@champion (version 2)" in done.stdout
    assert "(version 1) was rejected: smoke test: row 56" in done.stdout
    known = registry.read(mlflow.MlflowClient(), "phi3")
    assert known.champion.model_id == right
    assert known.champion.tags["phi3.smoke"].startswith("passed ")

    done = typed("register", *overrides)
    assert "Nothing changes: the champion onnx-int4-chat is the best already" in done.stdout
    assert "Smoke test" not in done.stdout
    figure("smoke: 1 killed, 1 rejected, 1 passed, 0 repeated")
    assert [change.version for change in history.changes(known)] == ["2"]


def killed_while_serving(overrides, folder):
    """Kill register with -9 while it serves a version: the server goes with it, and so do its files."""
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
    """The watcher that a register has started, and the server of that; nothing until both are there."""
    watchers = [child for child in psutil.Process(pid).children() if "watcher.py" in " ".join(child.cmdline())]
    servers = [server for watcher in watchers for server in watcher.children()]
    return [*watchers, *servers] if servers else []


def _wait_for(found):
    while not (result := found()):
        time.sleep(0.05)
    return result


def test_a_model_that_cannot_be_loaded_is_told_with_what_the_server_said():
    with (
        pytest.raises(smoke.NotLoaded, match=r"it could not be served: .*nowhere"),
        smoke.served("models:/nowhere/1", 90),
    ):
        pass


@pytest.mark.parametrize("ends", ["never up", "no room"])
def test_what_is_the_machines_fault_is_not_held_against_a_version(store, typed, monkeypatch, tmp_path, ends):
    folder, overrides, _ = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", copied(folder, tmp_path / "copy"))
    if ends == "no room":
        command = [sys.executable, "-c", "raise OSError(28, 'No space left on device')"]
        monkeypatch.setattr(smoke, "_command", lambda uri, port: command)
    client = mlflow.MlflowClient()
    for version in registry.read(client, "phi3").versions:
        client.delete_model_version("phi3", version.number)
    done = typed("register", *overrides, "promotion.smoke_seconds=1")
    said = {"never up": "it was not up within promotion.smoke_seconds=1", "no room": "No space left on device"}[ends]
    assert done.returncode == 1
    assert f"could not be smoked: {said}" in done.stderr.replace("it could not be served: OSError: [Errno 28] ", "")
    (version,) = registry.read(client, "phi3").versions
    assert version.rejected is None
    assert registry.read(client, "phi3").aliases == {}


def test_a_served_model_is_read_whatever_its_shape(monkeypatch):
    replies = iter([[{"a": 1}], {"predictions": ["yes"]}, {"predictions": "yes"}])
    server = smoke.Served(1)
    asked = []
    monkeypatch.setattr(server, "_post", lambda body: asked.append(body) or next(replies))
    assert server.predict({"messages": []}) == [{"a": 1}]
    assert server.predict({"prompt": "?"}) == ["yes"]
    assert server.predict({"prompt": "?"}, {"seed": 1}) == "yes"
    assert asked == [{"messages": []}, {"inputs": {"prompt": "?"}}, {"inputs": {"prompt": "?"}, "params": {"seed": 1}}]
    server.close()
