"""Logged models, loaded as users load them: the contract suite, seeds, frames, streams and MLflow's server."""

import asyncio
import gc
import importlib
import json
import sys
import time
import types
import weakref

import fastapi
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steps.evaluation import asking, contract_suite
from steps.evaluation.asking import Asker
from steps.interfaces import get_interface
from steps.modes import get_mode
from tests.conftest import SPAIN

MARK = "marked-prompt-8c1f"
MESSAGES = [{"role": "user", "content": SPAIN}]
SAMPLED = {"messages": MESSAGES, "temperature": 2.0, "max_tokens": 8}


MODELS = [(mode, interface) for mode in ("pyfunc", "onnx", "transformers") for interface in ("chat", "prompt")]


@pytest.mark.parametrize(("loaded", "mode", "interface"), [(pair, *pair) for pair in MODELS], indirect=["loaded"])
@pytest.mark.filterwarnings("ignore")  # from MLflow's stock flavour
def test_contract_suite_passes_for_every_mode_and_interface(loaded, mode, interface):
    checks = contract_suite.checks(interface)
    results = contract_suite.run_checks(Asker(loaded, get_mode(mode), get_interface(interface)), checks)
    assert len(results) == len(checks)
    if mode != "transformers":
        assert {result.name: result.fault for result in results if result.fault} == {}


@pytest.mark.parametrize("mode", ["pyfunc", "onnx"])
@pytest.mark.slow
def test_model_without_references_is_freed(uris, monkeypatch, mode):
    """Otherwise the variants of an evaluation would add up in memory."""
    uri, store = uris(mode, "chat")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with asking.loaded(uri) as model:
        monkeypatch.setattr(_scheduler_module(model), "IDLE_SECONDS", 0.1)
        model.predict({"messages": MESSAGES})
        engine = weakref.ref(model.unwrap_python_model().scheduler.engine)
    del model
    deadline = time.monotonic() + 30
    while engine():
        gc.collect()
        assert time.monotonic() < deadline


def _scheduler_module(model):
    return sys.modules[type(model.unwrap_python_model().scheduler).__module__]


def _text(reply):
    return reply["choices"][0]["message"]["content"]


def test_seed_may_be_a_field_a_param_or_a_custom_input(loaded):
    seeded = loaded.predict(SAMPLED | {"custom_inputs": {"seed": 5}})
    for request, params in ((SAMPLED, {"seed": 5}), (SAMPLED | {"seed": 5}, None)):
        assert _text(loaded.predict(request, params=params)) == _text(seeded)
    other = loaded.predict(SAMPLED, params={"seed": 6})
    assert _text(other) != _text(seeded)
    pieces = [chunk["choices"][0]["delta"] for chunk in loaded.predict_stream(SAMPLED, params={"seed": 5})]
    assert "".join(piece.get("content", "") for piece in pieces) == _text(seeded)


ENGINES = [(("pyfunc", "chat"), "pyfunc"), (("onnx", "chat"), "onnx")]


@pytest.mark.parametrize(("loaded", "mode"), ENGINES, indirect=["loaded"])
def test_chat_stream_yields_chunks_in_openai_format(loaded, mode):
    whole = loaded.predict({"messages": MESSAGES})
    chunks = list(loaded.predict_stream({"messages": MESSAGES}))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {whole["model"]}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert {choice["finish_reason"] for choice in choices[:-1]} == {None}
    assert len(choices) >= 3  # a slow reader gets several tokens in one piece
    assert "".join(choice["delta"].get("content", "") for choice in choices) == _text(whole)


@pytest.mark.parametrize(
    ("loaded", "mode"), [(("pyfunc", "prompt"), "pyfunc"), (("onnx", "prompt"), "onnx")], indirect=["loaded"]
)
def test_prompt_stream_yields_the_text_in_pieces(loaded, mode):
    pieces = list(loaded.predict_stream({"prompt": SPAIN}, params={"max_tokens": 5}))
    assert "".join(pieces) == loaded.predict({"prompt": SPAIN}, params={"max_tokens": 5})


@pytest.mark.parametrize(("loaded", "mode"), ENGINES, indirect=["loaded"])
def test_usage_counts_the_tokens_of_the_tokenizer(loaded, mode, checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    reply = loaded.predict({"messages": MESSAGES, "n": 2})
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    # The end token counts too.
    completions = [len(tokenizer.encode(choice["message"]["content"])) + 1 for choice in reply["choices"]]
    counts = {"prompt_tokens": len(prompt), "completion_tokens": sum(completions)}
    reused = reply["usage"].pop("prompt_tokens_details")["cached_tokens"]
    assert 0 <= reused < len(prompt)
    assert reply["usage"] == counts | {"total_tokens": len(prompt) + sum(completions)}


def test_frame_may_have_empty_cells_and_foreign_columns(loaded):
    alone = _text(loaded.predict({"messages": MESSAGES}))
    row = {"messages": MESSAGES, "temperature": float("nan"), "max_tokens": None, "target": "x"}
    assert [_text(reply) for reply in loaded.predict(pd.DataFrame([row]))] == [alone]
    assert [_text(reply) for reply in loaded.predict(pd.DataFrame([row, row]))] == [alone, alone]


def test_full_queue_is_refused_before_the_first_chunk(loaded, monkeypatch):
    monkeypatch.setattr(_scheduler_module(loaded), "MAX_WAITING", 0)
    with pytest.raises(Exception, match="queue_full"):
        next(loaded.predict_stream({"messages": MESSAGES}))


def test_closing_a_stream_early_releases_its_slot(loaded, monkeypatch):
    scheduler, submitted = loaded.unwrap_python_model().scheduler, []
    submit = scheduler.submit
    monkeypatch.setattr(scheduler, "submit", lambda sequences: submitted.extend(sequences) or submit(sequences))
    stream = loaded.predict_stream({"messages": MESSAGES})
    next(stream)
    assert [sequence.cancelled for sequence in submitted] == [False]
    stream.close()
    assert [sequence.cancelled for sequence in submitted] == [True]


class _App:
    """MLflow's scoring server for a model, called without a network."""

    def __init__(self, model):
        from mlflow.pyfunc import scoring_server

        self._app, self._loop = scoring_server.init(model), asyncio.new_event_loop()
        self.scheduler = model.unwrap_python_model().scheduler

    def post(self, body, content_type="application/json"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, reply = self._ask("POST", "/invocations", content, content_type)
        if not reply.startswith(b"data: "):
            return status, json.loads(reply)
        *events, end, rest = reply.split(b"\n\n")
        assert (end, rest) == (b"data: [DONE]", b"")
        return status, [json.loads(event.removeprefix(b"data: ")) for event in events]

    def ping(self):
        return self._ask("GET", "/ping", b"", "")[0]

    def _ask(self, *request):
        return self._loop.run_until_complete(asyncio.wait_for(self._call(*request), 60))

    async def _call(self, method, path, content, content_type):
        sent, requests = [], [{"type": "http.request", "body": content, "more_body": False}]
        answered = asyncio.Event()

        async def receive():
            if requests:
                return requests.pop()
            await answered.wait()  # as uvicorn does
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answered.set()

        headers = [(b"content-type", content_type.encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        await self._app(scope | {"http_version": "1.1", "scheme": "http", "server": ("a", 1)}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)

    def close(self):
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(params=["chat", "prompt", "onnx-chat"])
def app(request, uris, monkeypatch):
    *mode, interface = request.param.split("-")
    uri, store = uris(*(mode or ["pyfunc"]), interface)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc.scoring_server.app", types.ModuleType("app"))
    monkeypatch.setattr(fastapi, "FastAPI", importlib.import_module("fastapi.applications").FastAPI)
    with asking.loaded(uri) as model:
        app = _App(model)
        yield app
        app.close()


@pytest.mark.parametrize("app", ["chat"], indirect=True)
def test_ping_reports_a_failing_engine_until_it_works_again(app, monkeypatch, caplog):
    assert app.ping() == 200
    with monkeypatch.context() as patch:
        patch.setattr(app.scheduler.engine, "step", lambda arriving: 1 / 0)
        status, reply = app.post({"messages": MESSAGES})
        assert (status, reply["message"].partition("]")[0]) == (500, "[engine_failed")
        assert app.ping() == 503
    deadline = time.monotonic() + 30
    while app.ping() != 200:
        assert time.monotonic() < deadline
    assert app.post({"messages": MESSAGES})[0] == 200


@pytest.fixture
def one_second(monkeypatch):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")


@pytest.mark.parametrize("app", ["chat"], indirect=True)
def test_timed_out_request_releases_its_slots(one_second, app, monkeypatch):
    submitted, submit, step = [], app.scheduler.submit, app.scheduler.engine.step
    monkeypatch.setattr(app.scheduler, "submit", lambda sequences: submitted.extend(sequences) or submit(sequences))
    monkeypatch.setattr(app.scheduler.engine, "step", lambda arriving: time.sleep(0.4) or step(arriving))
    status, reply = app.post({"messages": MESSAGES, "max_tokens": 40, "n": 2})
    assert (status, reply["message"].partition("]")[0]) == (504, "[timed_out")
    deadline = time.monotonic() + 30
    while app.scheduler.running:
        assert time.monotonic() < deadline
    # The answers would have more tokens than the engine generates in a second.
    assert [sequence.finish_reason for sequence in submitted] == [None, None]
    assert all(len(sequence.tokens) <= 4 for sequence in submitted)


SEEDS = {
    "a field": lambda subject, seed: subject | {"seed": seed},
    "a param": lambda subject, seed: subject | {"params": {"seed": seed}},
    "a param of inputs": lambda subject, seed: {"inputs": [subject], "params": {"seed": seed}},
}


@pytest.mark.parametrize("make", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("app", ["chat", "prompt"], indirect=True)
def test_seed_may_be_a_whole_number_with_a_point(app, request, make):
    chat = request.node.callspec.params["app"] == "chat"
    subject = {"messages": MESSAGES} if chat else {"prompt": SPAIN}
    status, reply = app.post(make(subject, 7.0))
    assert status == 200, reply
    for seed, got in ((7.5, "7.5"), ("7", "'7'"), (-1, "-1"), (True, "True"), (2**63, "9223372036854775808")):
        status, reply = app.post(make(subject, seed))
        assert status == 400
        assert reply["message"].startswith("[invalid_seed] seed must be a whole number")
        assert reply["message"].endswith(f"got {got}")


@pytest.mark.parametrize("app", ["prompt"], indirect=True)
def test_csv_of_prompts_is_answered_in_order(app):
    prompts = [SPAIN, "What is the capital of France?", "Well, which one?"]
    table = pd.DataFrame({"prompt": prompts, "own": 1}).to_csv(index=False)
    status, reply = app.post(table.encode(), "text/csv")
    assert status == 200, reply
    assert reply == app.post({"inputs": [{"prompt": prompt} for prompt in prompts]})[1]


@pytest.mark.parametrize("app", ["prompt"], indirect=True)
def test_csv_may_have_settings_and_words_that_pandas_reads_as_missing(app):
    table = b'prompt,max_tokens,stop\nNA,3,\n"Say ""null"", please",,"[""a""]"\n'
    status, reply = app.post(table, "text/csv")
    assert status == 200, reply
    rows = [{"prompt": "NA", "max_tokens": 3}, {"prompt": 'Say "null", please', "stop": ["a"]}]
    assert reply == app.post({"inputs": rows})[1]


@pytest.mark.parametrize("app", ["chat"], indirect=True)
def test_csv_may_have_conversations_as_json(app):
    table = pd.DataFrame({"messages": [json.dumps(MESSAGES)] * 2}).to_csv(index=False)
    status, reply = app.post(table.encode(), "text/csv")
    assert status == 200, reply
    assert _text(reply["predictions"][1]) == _text(app.post({"messages": MESSAGES})[1])


TABLES = {
    "too many rows": (b"prompt\n" + b"a\n" * 300, "too_many_rows", "at most 256 rows"),
    "short lines under a long header": (
        b",".join(b"c%d" % n for n in range(50_000)) + b"\na" * 300_000,
        "too_many_rows",
        "",
    ),
    "a longer row": (
        b"prompt,n\na,1,secret\n",
        "invalid_csv",
        "a row of the CSV table has 3 cells, but its header has only 2",
    ),
    "a name twice": (b"prompt,prompt\na,b\n", "invalid_csv", "unique names"),
    "an open quote": (b'prompt\n"secret', "invalid_csv", "CSV with a header: unexpected end"),
    "no row": (b"prompt\n", "no_rows", "at least one row"),
    "nothing": (b"", "no_rows", "at least one row"),
    "another table": (b"question\nsecret\n", "not_text", "prompt must be a string"),
    "a setting in words": (b"prompt,n\na,secret\n", "invalid_n", "n must be a whole number"),
}


@pytest.mark.parametrize(("table", "code", "words"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("app", ["prompt"], indirect=True)
def test_invalid_csv_is_refused(app, table, code, words):
    status, reply = app.post(table, "text/csv")
    assert status == 400
    assert reply["message"].startswith(f"[{code}] ")
    assert words in reply["message"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(MARK),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CONTENT = st.text(max_size=20).map(lambda text: MARK + text) | st.lists(st.just(MARK), max_size=2)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool", 5, None]), "content": CONTENT})
SETTINGS = {
    "temperature": st.floats(-1, 3) | st.none() | st.booleans(),
    "max_tokens": st.integers(-1, 3) | st.just(10**30),
    "n": st.integers(0, 9) | st.just(1.0),
    "seed": st.integers() | st.text(max_size=3),
    "stop": st.lists(st.text(max_size=2), max_size=3) | st.integers(),
    "stream": st.booleans(),
    "x": VALUES.filter(lambda value: value != MARK),
}
SUBJECTS = {"messages": st.lists(MESSAGE, max_size=2), "prompt": CONTENT}
ROW = st.fixed_dictionaries({}, optional=SETTINGS | SUBJECTS).map(lambda row: {"max_tokens": 2} | row)
SPLIT = st.fixed_dictionaries(
    {"columns": st.just(["prompt", "max_tokens"]) | VALUES, "data": st.lists(st.tuples(CONTENT, st.just(2))) | VALUES}
)
BODY = st.one_of(
    ROW,
    ROW.flatmap(lambda row: st.fixed_dictionaries({"params": st.just(row) | VALUES}).map(lambda params: row | params)),
    *(
        st.fixed_dictionaries(
            {form: ROW | st.lists(ROW, max_size=3) | VALUES},
            optional={"params": st.fixed_dictionaries({}, optional=SETTINGS)},
        )
        for form in ("inputs", "instances", "dataframe_records", "input")
    ),
    st.fixed_dictionaries({"dataframe_split": SPLIT | VALUES}),
    VALUES,
)


def _assert_answered_or_refused(app, body, content_type="application/json"):
    status, reply = app.post(body, content_type)
    assert status < 500, reply
    if status != 200:
        assert status in (400, 415)
        assert MARK not in json.dumps(reply)
        assert reply["message"].startswith("[")
        assert "stack_trace" not in reply
    return status


def test_random_body_is_answered_or_refused(app):
    """No reply is an internal error or contains a traceback or the prompt."""
    statuses = set()

    @settings(max_examples=120, deadline=None)
    @given(BODY)
    @example({"messages": [{"role": "user", "content": MARK}], "max_tokens": 2})
    @example({"prompt": MARK, "max_tokens": 2})
    @example({"messages": [{"role": "user", "content": MARK}], "max_tokens": 2, "stream": True})
    @example({"prompt": MARK, "max_tokens": 2, "stream": True})
    def ask(body):
        statuses.add(_assert_answered_or_refused(app, body))

    ask()
    assert statuses == {200, 400}


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "text/plain", ""])
def test_random_bytes_are_refused(app, kind):
    @settings(max_examples=20, deadline=None)
    @given(st.binary(max_size=30))
    def ask(content):
        assert _assert_answered_or_refused(app, content + MARK.encode(), kind) in (400, 415)

    ask()
