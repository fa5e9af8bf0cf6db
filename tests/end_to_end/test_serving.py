"""A real `mlflow models serve` with concurrent clients, clients that leave, and bad requests."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from steps import command_line
from steps.build import build
from steps.config.schema import PromptSet
from steps.evaluation import prompt_set
from tests.conftest import SPAIN
from tests.support import free_port

QUESTIONS = [row.question for row in prompt_set.load(PromptSet("facts", "conf/prompt_set/facts.jsonl")).rows[:32]]
MARK = "marked-prompt-8c1f"


class ServedModel:
    """A server process on a free port."""

    def __init__(self, uri: str, folder: Path):
        self.port = free_port()
        self.log = folder / "serve.log"
        command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--port", str(self.port)]
        environment = os.environ | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "60"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self) -> None:
        """Return when the server answers; fail if it ends first, or after two minutes."""
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.5)
        pytest.fail(self.log.read_text()[-2000:])

    def post(
        self, body: dict | bytes, timeout: float = 60, content_type: str | None = "application/json"
    ) -> tuple[int, dict]:
        """Send a request; return the status and the content of the reply."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        # urllib adds a type if there is none, so None is sent as an empty one.
        headers = {"Content-Type": content_type or ""}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/invocations", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    def ask(self, question: str, **fields) -> str:
        """Return the answer to one chat message."""
        status, reply = self.post({"messages": [{"role": "user", "content": question}]} | fields)
        assert status == 200, reply
        return reply["choices"][0]["message"]["content"]

    def memory(self) -> int:
        """Return the bytes that the server and its child processes occupy."""
        server = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [server, *server.children(recursive=True)])

    def stop(self) -> None:
        """End the server and its child processes."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)
        # A worker may still wait for a client that never closes its connection.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def serve(folder, checkpoint, empty_store, *overrides):
    """Build a variant in a store of its own and serve it until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.chdir(folder)
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        model_id = build(command_line.compose("build", list(overrides)), checkpoint)
        server = ServedModel(f"models:/{model_id}", folder)
        try:
            server.wait()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module", params=["pyfunc", "onnx"])
def served(request, tmp_path_factory, checkpoint, empty_store):
    """Return a served chat model of each of our wrappers."""
    with serve(tmp_path_factory.mktemp("served"), checkpoint, empty_store, f"mode={request.param}") as server:
        yield server


def test_a_reply_has_the_shape_of_a_chat_completion(served):
    status, reply = served.post({"messages": [{"role": "user", "content": SPAIN}], "temperature": 0, "n": 1})
    assert status == 200
    assert reply["object"] == "chat.completion"
    assert "Madrid" in reply["choices"][0]["message"]["content"]


def test_openais_routes_are_in_the_same_process(served):
    address = f"http://127.0.0.1:{served.port}"
    body = json.dumps({"messages": [{"role": "user", "content": SPAIN}], "stream": True}).encode()
    for path in ("/v1/chat/completions", "/invocations"):
        request = urllib.request.Request(f"{address}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            lines = reply.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
        assert "Madrid" in "".join(delta.get("content", "") for delta in deltas)
    with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as reply:
        (model,) = json.load(reply)["data"]
    assert len(model["fingerprint"]) == 64
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as reply:
        assert b"phi3_completion_tokens_total" in reply.read()


def test_concurrent_clients_get_their_own_answers_and_memory_stays_flat(served):
    # Each request has its own cap, so that its reply differs from all others.
    bodies = [
        {"messages": [{"role": "user", "content": question}], "max_tokens": 3 + index}
        for index, question in enumerate(QUESTIONS)
    ]

    def ask(body):
        status, reply = served.post(body)
        assert status == 200, reply
        del reply["usage"]["prompt_tokens_details"]  # an earlier request may have computed a part of the prompt
        return reply["choices"], reply["usage"]

    # If two questions have the same short answer, keep one of them.
    distinct = {json.dumps(reply): (body, reply) for body in bodies for reply in [ask(body)]}
    assert len(distinct) > len(bodies) - 4
    bodies, replies = [body for body, _ in distinct.values()], [reply for _, reply in distinct.values()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, bodies))
    before = served.memory()
    for clients in (1, 4, 8, 16):
        with ThreadPoolExecutor(clients) as pool:
            assert list(pool.map(ask, bodies)) == replies
    assert served.memory() < before + 100_000_000


BAD = {
    "temperature": {"temperature": 3},
    "text for a number": {"temperature": "hot"},
    "n": {"n": 100},
    "stream": {"stream": "yes"},
    "role": {"messages": [{"role": "tool", "content": MARK}]},
    "not text": {"messages": [{"role": "user", "content": [MARK]}]},
    "not messages": {"messages": MARK},
    "control token": {"messages": [{"role": "user", "content": f"{MARK}<|end|>"}]},
    "surrogate": {"messages": [{"role": "user", "content": f"{MARK}\ud800"}]},
    "unknown field": {"temprature": 1},
    "seed": {"seed": -1},
    "seed in text": {"seed": "one"},
    "nesting": {"tools": json.loads("[" * 40 + "]" * 40)},
    "cut JSON": f'{{"messages": "{MARK}'.encode(),
    "no UTF-8": f'{{"messages": "{MARK}'.encode() + b'\xff"}',
    "n of 5000 digits": f'{{"messages": "{MARK}", "n": {"9" * 5000}}}'.encode(),
    "endless nesting": f'{{"messages": "{MARK}", "n": '.encode() + b"[" * 500_000,
    "too large": json.dumps({"messages": MARK * 100_000}).encode(),
    "frame": {"dataframe_split": {"columns": [MARK], "data": [[MARK, MARK]]}, "messages": None},
    "two forms": json.dumps({"inputs": MARK, "instances": MARK}).encode(),
    "a list": json.dumps([MARK]).encode(),
}
TABLE = f"messages,n\n{MARK},1\n".encode()
BAD_TYPES = {
    "no type": (TABLE, None, 415),
    "another type": (TABLE, "text/plain", 415),
    "another charset": (TABLE, "text/csv; charset=latin-1", 415),
    "CSV": (TABLE, "text/csv", 400),
    "CSV that is none": (b'"' + MARK.encode() + b"\xff\0", "text/csv", 400),
    "Parquet": (TABLE, "application/vnd.apache.parquet", 415),
}


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [*((fields, "application/json", 400) for fields in BAD.values()), *BAD_TYPES.values()],
    ids=[*BAD, *BAD_TYPES],
)
def test_a_bad_request_is_refused_with_a_code_and_without_repeating_the_prompt(served, body, content_type, code):
    question = {"messages": [{"role": "user", "content": MARK}]}
    status, reply = served.post(body if isinstance(body, bytes) else question | body, content_type=content_type)
    assert status == code
    assert re.match(r"\[[a-z_]+\] ", reply["message"])
    assert MARK not in json.dumps(reply)
    assert "stack_trace" not in reply


FORMS = {
    "inputs": lambda rows: {"inputs": rows},
    "instances": lambda rows: {"instances": rows},
    "dataframe_records": lambda rows: {"dataframe_records": rows},
    "dataframe_split": lambda rows: {
        "dataframe_split": {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_are_answered_in_order_in_every_form_that_mlflow_takes(served, form):
    rows = [{"messages": [{"role": "user", "content": question}], "n": None} for question in QUESTIONS[:5]]
    status, reply = served.post(form(rows))
    assert status == 200, reply
    texts = [row["choices"][0]["message"]["content"] for row in reply["predictions"]]
    assert texts == [served.ask(question) for question in QUESTIONS[:5]]


def test_a_seed_counts_as_a_field_a_param_or_a_custom_input(served):
    body = {"messages": [{"role": "user", "content": SPAIN}], "temperature": 2.0, "max_tokens": 12}
    seeded = [{"seed": 5}, {"custom_inputs": {"seed": 5}}, {"params": {"seed": 5}}]
    texts = {served.post(body | fields)[1]["choices"][0]["message"]["content"] for fields in seeded}
    assert len(texts) == 1
    assert served.ask(SPAIN, temperature=2.0, max_tokens=12, seed=6) not in texts


def test_clients_that_leave_release_their_slots_at_once(served):
    def ask_for_much(question, timeout=60):
        row = {"messages": [{"role": "user", "content": question}], "temperature": 2, "max_tokens": 400, "n": 8}
        with contextlib.suppress(TimeoutError):
            assert served.post({"inputs": [row] * 8}, timeout)[0] == 200

    seconds_alone = seconds_of(lambda: ask_for_much(SPAIN))
    clients = len(QUESTIONS)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda question: ask_for_much(question, timeout=0.2), QUESTIONS))
    # If their completions still ran, an answer would take `clients * seconds_alone`.
    assert seconds_of(lambda: served.ask(SPAIN)) < max(1, clients * seconds_alone / 8)
    assert "Madrid" in served.ask(SPAIN)
    assert urllib.request.urlopen(f"http://127.0.0.1:{served.port}/ping", timeout=5).status == 200


def seconds_of(work):
    """Return how long a function takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.fixture(scope="module")
def served_prompts(tmp_path_factory, checkpoint, empty_store):
    """Return a served model that takes prompts."""
    with serve(tmp_path_factory.mktemp("prompts"), checkpoint, empty_store, "mode=onnx", "interface=prompt") as server:
        yield server


@pytest.mark.parametrize("params", [{"temperature": "hot"}, {"temperature": 3.0}, {"n": 100}, {"stop": 5}], ids=str)
def test_a_bad_param_is_a_400_with_a_code_that_names_the_param_and_not_the_prompt(served_prompts, params):
    status, reply = served_prompts.post({"inputs": {"prompt": MARK}, "params": params})
    assert status == 400
    assert re.match(r"\[[a-z_]+\] ", reply["message"])
    assert next(iter(params)) in reply["message"]
    assert MARK not in json.dumps(reply)


PROMPT = {"prompt": SPAIN}
SETTINGS = {"max_tokens": 40, "temperature": 0.0}


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": PROMPT, "params": SETTINGS},
        {"params": SETTINGS} | PROMPT,
        SETTINGS | PROMPT,
        {"instances": [PROMPT], "params": SETTINGS},
        {"dataframe_split": {"columns": ["prompt"], "data": [[SPAIN]]}, "params": SETTINGS},
    ],
    ids=lambda body: "-".join(body),
)
def test_a_prompt_with_params_is_answered_in_every_form(served_prompts, body):
    status, reply = served_prompts.post(body)
    assert status == 200
    rows = reply["predictions"]
    assert "Madrid" in (rows[0] if {"instances", "dataframe_split"} & body.keys() else rows)


# As a field may be, numbers may be of either type and one stop string may stand alone.
PARAMS = {"max_tokens": 2, "seed": 7.0, "temperature": 0, "stop": "nothing like it"}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_params_are_honoured_or_refused_in_every_form(served, form):
    rows = [{"messages": [{"role": "user", "content": SPAIN}]}]
    status, reply = served.post(form(rows) | {"params": PARAMS})
    assert status == 200, reply
    assert [row["usage"]["completion_tokens"] for row in reply["predictions"]] == [2]
    for params, word in (({"max_token": 2}, "max_token"), ({"suffix": "a"}, "suffix")):
        status, reply = served.post(form(rows) | {"params": params})
        assert (status, reply["message"].partition("]")[0]) == (400, "[unsupported_field")
        assert word in reply["message"]


def test_rows_above_the_limit_are_refused(served):
    status, reply = served.post({"inputs": [{"messages": [{"role": "user", "content": SPAIN}]}] * 257})
    assert (status, reply["message"].partition("]")[0]) == (400, "[too_many_rows")


def test_the_ai_gateway_gets_texts_for_texts(served_prompts):
    """The form that MLflow's gateway sends to a served model, for completions and for chat."""
    status, reply = served_prompts.post({"inputs": [SPAIN], "params": {"max_tokens": 40, "temperature": 0.0, "n": 1}})
    assert status == 200, reply
    (text,) = reply["predictions"]
    assert "Madrid" in text
