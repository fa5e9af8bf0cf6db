"""A model behind a real `mlflow models serve`, with clients at once, clients that leave, and bad requests."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from steps.evaluation import prompt_set
from steps.schema import PromptSet
from tests.conftest import SPAIN

QUESTIONS = [row.question for row in prompt_set.load(PromptSet("facts", "conf/prompt_set/facts.jsonl")).rows[:32]]
MARK = "marked-prompt-8c1f"


class Served:
    """A server process and its address."""

    def __init__(self, uri: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "serve.log"
        command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--port", str(self.port)]
        environment = os.environ | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "60"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self) -> None:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.5)
        pytest.fail(self.log.read_text()[-2000:])

    def post(self, body: dict | bytes, timeout: float = 60) -> tuple[int, dict]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations", content, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    def ask(self, question: str, **fields) -> str:
        status, reply = self.post({"messages": [{"role": "user", "content": question}]} | fields)
        assert status == 200, reply
        return reply["choices"][0]["message"]["content"]

    def memory(self) -> int:
        family = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [family, *family.children(recursive=True)])

    def stop(self) -> None:
        os.killpg(self.process.pid, 15)
        self.process.wait(30)


@contextlib.contextmanager
def _serve(folder, checkpoint, empty_store, *overrides):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.chdir(folder)
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        words = [sys.executable, "-m", "steps.build", *overrides, "model=local", f"model.path={checkpoint.directory}"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        server = Served(re.search(r"models:/\S+", done.stdout)[0], folder)
        try:
            server.wait()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module", params=["pyfunc", "onnx"])
def served(request, tmp_path_factory, checkpoint, empty_store):
    with _serve(tmp_path_factory.mktemp("served"), checkpoint, empty_store, f"mode={request.param}") as server:
        yield server


def test_an_openai_shaped_object_comes_back(served):
    status, reply = served.post({"messages": [{"role": "user", "content": SPAIN}], "temperature": 0, "n": 1})
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert "Madrid" in reply["choices"][0]["message"]["content"]


def test_clients_at_once_get_their_own_answers_and_memory_stays_flat(served):
    alone = [served.ask(question) for question in QUESTIONS]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(served.ask, QUESTIONS))
    before = served.memory()
    for clients in (1, 4, 8, 16):
        with ThreadPoolExecutor(clients) as pool:
            assert list(pool.map(served.ask, QUESTIONS)) == alone
    assert served.memory() < before + 100_000_000


BAD = {
    "temperature": {"temperature": 3},
    "text for a number": {"temperature": "hot"},
    "n": {"n": 100},
    "stream": {"stream": True},
    "role": {"messages": [{"role": "tool", "content": MARK}]},
    "not text": {"messages": [{"role": "user", "content": [MARK]}]},
    "not messages": {"messages": MARK},
    "control token": {"messages": [{"role": "user", "content": f"{MARK}<|end|>"}]},
    "surrogate": {"messages": [{"role": "user", "content": f"{MARK}\ud800"}]},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_a_bad_request_is_a_400_that_does_not_repeat_the_prompt(served, fields):
    status, reply = served.post({"messages": [{"role": "user", "content": MARK}]} | fields)
    assert status == 400
    assert re.match(r"\[[a-z_]+\] ", reply["message"])
    assert MARK not in json.dumps(reply)
    assert "stack_trace" not in reply


def test_clients_that_leave_free_their_places_at_once(served):
    def ask_all(timeout):
        def ask(question):
            body = {"messages": [{"role": "user", "content": question}], "temperature": 2, "max_tokens": 400, "n": 8}
            with contextlib.suppress(TimeoutError):
                served.post(body, timeout)

        started = time.perf_counter()
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, QUESTIONS))
        return time.perf_counter() - started

    whole = ask_all(timeout=60)
    ask_all(timeout=0.2)
    started = time.perf_counter()
    assert "Madrid" in served.ask(SPAIN)
    # Behind all that the thirty-two have asked for, the answer would take as long as they did (a fast engine: seconds).
    assert time.perf_counter() - started < max(5, whole / 2)
    assert urllib.request.urlopen(f"http://127.0.0.1:{served.port}/ping", timeout=5).status == 200


@pytest.fixture(scope="module")
def served_prompts(tmp_path_factory, checkpoint, empty_store):
    with _serve(tmp_path_factory.mktemp("prompts"), checkpoint, empty_store, "mode=onnx", "interface=prompt") as server:
        yield server


@pytest.mark.parametrize("params", [{"temperature": "hot"}, {"temperature": 3.0}, {"n": 100}, {"stop": "x"}], ids=str)
def test_a_bad_param_is_a_400_with_a_code_that_does_not_repeat_the_prompt(served_prompts, params):
    status, reply = served_prompts.post({"inputs": {"prompt": MARK}, "params": params})
    assert status == 400
    assert re.match(r"\[[a-z_]+\] ", reply["message"])
    assert next(iter(params)) in reply["message"]
    assert MARK not in json.dumps(reply)


def test_params_that_are_good_are_answered(served_prompts):
    status, reply = served_prompts.post({"inputs": {"prompt": SPAIN}, "params": {"max_tokens": 40, "temperature": 0.0}})
    assert status == 200
    assert "Madrid" in json.dumps(reply)
