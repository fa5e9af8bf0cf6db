"""The step `serve` as a process: it follows the alias, needs its key, and ends on SIGTERM after its requests."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import mlflow
import pytest

from steps import command_line
from steps.build import build
from tests.conftest import PROJECT, SPAIN
from tests.support import free_port, wait_until

KEY = "marked-key"
CHAT = {"messages": [{"role": "user", "content": SPAIN}]}
# Forty tokens that the model would not choose by itself; each takes the same time.
LONG = CHAT | {"stream": True, "max_tokens": 300, "logit_bias": {"40": 100}}


class _Step:
    """The step as a process, and a client of it."""

    def __init__(self, folder, *overrides):
        self.port, self.log = free_port(), folder / "serve.log"
        command = [
            sys.executable,
            "-m",
            "steps.serve",
            f"port={self.port}",
            "follow=true",
            "poll_seconds=0.2",
            *overrides,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=PROJECT)
        headers = {"authorization": f"Bearer {KEY}"}
        address = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False)

    def is_up(self):
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return self.client.get("/ping").status_code == 200
        except httpx.TransportError:
            return False

    def version(self):
        """The version that answers now."""
        reply = self.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1})
        assert reply.status_code == 200, reply.text
        return reply.json()["model"]

    def stream(self, into):
        """Read a whole stream; add its chunks to a list."""
        with self.client.stream("POST", "/v1/chat/completions", json=LONG) as reply:
            into += [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]

    def stop(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


@pytest.fixture(scope="module")
def step(tmp_path_factory, checkpoint, empty_store):
    """The step over three versions; the third one is damaged."""
    folder = tmp_path_factory.mktemp("step")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    (folder / "keys").write_text(KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        for mode in ("onnx", "pyfunc", "onnx"):
            model_id = build(command_line.compose("build", [f"mode={mode}"]), checkpoint)
            mlflow.register_model(f"models:/{model_id}", "phi3")
        client = mlflow.MlflowClient()
        (weights,) = Path(client.get_logged_model(model_id).artifact_location).rglob("*.onnx.data")
        weights.write_bytes(weights.read_bytes()[:-1])
        client.set_registered_model_alias("phi3", "champion", "1")
        step = _Step(folder, f"key_file={folder}/keys", "shutdown_seconds=20")
        try:
            wait_until(step.is_up, seconds=120, pause=0.2)
            yield step
        finally:
            step.stop()


def _move(version):
    mlflow.MlflowClient().set_registered_model_alias("phi3", "champion", version)


@pytest.mark.slow
def test_step_serves_follows_and_ends(step, monkeypatch):
    """One process for all of it, because its start takes most of the time."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{step.log.parent}/mlflow.db")
    assert step.client.post("/v1/chat/completions", json=CHAT, headers={"authorization": ""}).status_code == 401
    (model,) = step.client.get("/v1/models").json()["data"]
    assert (model["id"], model["version"], model["alias"]) == ("phi3", "1", "champion")
    assert len(model["fingerprint"]) == 64
    assert "phi3_requests_total" in step.client.get("/metrics").text
    assert step.client.post("/invocations", json=CHAT).json()["object"] == "chat.completion"

    chunks = []
    stream = threading.Thread(target=step.stream, args=(chunks,))
    stream.start()
    _move("2")
    wait_until(lambda: step.version() == "phi3/2", seconds=60, pause=0.1)
    stream.join()
    assert {chunk["model"] for chunk in chunks} == {"phi3/1"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"

    _move("3")
    wait_until(lambda: "Version 2 keeps serving" in step.log.read_text(), seconds=60)
    assert step.version() == "phi3/2"

    chunks.clear()
    stream = threading.Thread(target=step.stream, args=(chunks,))
    stream.start()
    wait_until(lambda: "phi3_batch_size 1.0" in step.client.get("/metrics").text, pause=0.01)
    step.process.send_signal(signal.SIGTERM)
    assert step.process.wait(30) == 0, step.log.read_text()[-2000:]
    stream.join()
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert KEY not in step.log.read_text()


def test_alias_that_names_nothing_is_one_sentence(typed):
    done = typed("serve", "registered_model=none")
    assert done.returncode == 1
    (error,) = done.stderr.strip().splitlines()
    assert error.startswith("error: models:/none@champion does not exist")
