"""What the wrappers add to MLflow's scoring server, on a real uvicorn in this process."""

import asyncio
import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import fastapi
import pytest
import uvicorn

from steps.wrappers import serving
from steps.wrappers.serving import CLIENT, _cut, _watched


class _Sequence:
    cancelled = False


class _Server:
    """An app whose /invocations waits in a thread until it is let go or its client has left."""

    def __init__(self):
        self.sequence, self.entered, self.let_go = _Sequence(), threading.Event(), threading.Event()
        app = _watched(fastapi.FastAPI)()

        def predict():
            CLIENT.get().waits_for([self.sequence])
            self.entered.set()
            while not (self.let_go.wait(0.01) or self.sequence.cancelled):
                pass

        @app.post("/invocations")
        async def invocations(request: fastapi.Request):
            await request.body()
            await asyncio.to_thread(predict)
            return {"answered": True}

        @app.get("/ping")
        async def ping():
            return {}

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = int(self.address.rpartition(":")[2])
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.01)

    def post(self, timeout=30):
        request = urllib.request.Request(f"{self.address}/invocations", b"{}")
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return json.load(reply)

    def stop(self):
        self.let_go.set()
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def server():
    server = _Server()
    yield server
    server.stop()


def _until(condition):
    for _ in range(3000):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


def test_who_stays_is_answered(server):
    server.let_go.set()
    assert server.post() == {"answered": True}


def test_the_sequences_of_who_leaves_are_cancelled(server):
    with contextlib.suppress(TimeoutError):
        server.post(timeout=0.2)
    assert server.entered.wait(30)
    assert _until(lambda: server.sequence.cancelled)


def test_a_request_too_many_is_told_at_once_and_the_ping_is_not(server, monkeypatch):
    monkeypatch.setattr(serving, "MAX_REQUESTS", 1)
    waiting = threading.Thread(target=server.post)
    waiting.start()
    assert server.entered.wait(30)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post()
    with refusal.value:
        assert refusal.value.code == 429
        assert json.load(refusal.value)["message"].startswith("[queue_full] 1 requests")
    urllib.request.urlopen(f"{server.address}/ping", timeout=30).close()
    server.let_go.set()
    waiting.join()


def test_sequences_of_a_client_that_has_left_already_are_cancelled():
    client, sequence = serving.Client(), _Sequence()
    client.leave()
    client.waits_for([sequence])
    assert sequence.cancelled


def test_nothing_is_watched_outside_of_the_scoring_server():
    before = fastapi.FastAPI
    serving.watch_clients()
    assert fastapi.FastAPI is before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"message": "Failed to predict data \'secret\'. \\nError: bad n"}',
            b'{"message": "[invalid_params] bad n"}',
        ),
        (b'{"message": "[invalid_n] n is 9"}', b'{"message": "[invalid_n] n is 9"}'),
        (b"not json", b"not json"),
        (b"[1]", b"[1]"),
    ],
)
def test_the_input_is_cut_out_of_what_mlflow_says(body, said):
    assert _cut(body) == said
