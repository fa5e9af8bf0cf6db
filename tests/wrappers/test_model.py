"""The logged models, loaded as users load them: the contract suite, seeds, frames, streams, and MLflow's server."""

import asyncio
import importlib
import json
import sys
import types

import fastapi
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steps import cli
from steps.build import build
from steps.evaluation import answers, contract
from tests.conftest import SPAIN

MARK = "marked-prompt-8c1f"
MESSAGES = [{"role": "user", "content": SPAIN}]
SAMPLED = {"messages": MESSAGES, "temperature": 2.0, "max_tokens": 8}


@pytest.fixture(scope="module")
def uris(tmp_path_factory, checkpoint, empty_store):
    """The address of the model of a mode and an interface; each is built once."""
    folder, known = tmp_path_factory.mktemp("models"), {}
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())

    def uri(mode, interface):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            if (mode, interface) not in known:
                known[mode, interface] = build(
                    cli.compose("build", [f"mode={mode}", f"interface={interface}"]), checkpoint
                )
        return f"models:/{known[mode, interface]}", f"sqlite:///{folder}/mlflow.db"

    return uri


@pytest.fixture
def loaded(uris, monkeypatch, request):
    mode, interface = getattr(request, "param", ("pyfunc", "chat"))
    uri, store = uris(mode, interface)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with answers.loaded(uri) as model:
        yield model


MODELS = [(mode, interface) for mode in ("pyfunc", "onnx", "transformers") for interface in ("chat", "prompt")]


@pytest.mark.parametrize(("loaded", "mode", "interface"), [(pair, *pair) for pair in MODELS], indirect=["loaded"])
@pytest.mark.filterwarnings("ignore")  # of the stock flavour's own
def test_the_contract_suite_over_modes_and_interfaces(loaded, mode, interface):
    results = contract.run(loaded, interface)
    assert len(results) == len(contract.checks(interface))
    if mode != "transformers":
        assert {result.name: result.fault for result in results if result.fault} == {}


def _text(reply):
    return reply["choices"][0]["message"]["content"]


def test_a_seed_is_a_field_a_param_or_a_custom_input(loaded):
    seeded = loaded.predict(SAMPLED | {"custom_inputs": {"seed": 5}})
    for request, params in ((SAMPLED, {"seed": 5}), (SAMPLED | {"seed": 5}, None)):
        assert _text(loaded.predict(request, params=params)) == _text(seeded)
    other = loaded.predict(SAMPLED, params={"seed": 6})
    assert _text(other) != _text(seeded)
    pieces = [chunk["choices"][0]["delta"] for chunk in loaded.predict_stream(SAMPLED, params={"seed": 5})]
    assert "".join(piece.get("content", "") for piece in pieces) == _text(seeded)


def test_a_frame_may_have_empty_cells_and_columns_of_its_own(loaded):
    alone = _text(loaded.predict({"messages": MESSAGES}))
    row = {"messages": MESSAGES, "temperature": float("nan"), "max_tokens": None, "target": "x"}
    assert _text(loaded.predict(pd.DataFrame([row]))) == alone
    assert [_text(reply) for reply in loaded.predict(pd.DataFrame([row, row]))] == [alone, alone]


def test_a_full_queue_is_told_before_the_first_chunk(loaded, monkeypatch):
    monkeypatch.setattr(sys.modules["wrappers.scheduler"], "MAX_WAITING", 0)
    with pytest.raises(Exception, match="queue_full"):
        next(loaded.predict_stream({"messages": MESSAGES}))


def test_who_leaves_a_stream_after_its_first_chunk_frees_the_place(loaded, monkeypatch):
    left = []
    cancel = sys.modules["wrappers.scheduler"].Scheduler.cancel
    monkeypatch.setattr(
        sys.modules["wrappers.scheduler"].Scheduler,
        "cancel",
        lambda self, sequences: left.extend(sequences) or cancel(self, sequences),
    )
    stream = loaded.predict_stream({"messages": MESSAGES})
    next(stream)
    stream.close()
    assert [sequence.cancelled for sequence in left] == [True]


class _App:
    """MLflow's scoring server around a model, asked without a network."""

    def __init__(self, model):
        from mlflow.pyfunc import scoring_server

        self._app, self._loop = scoring_server.init(model), asyncio.new_event_loop()

    def post(self, body, content_type="application/json"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._loop.run_until_complete(asyncio.wait_for(self._post(content, content_type), 60))

    async def _post(self, content, content_type):
        sent, asked = [], [{"type": "http.request", "body": content, "more_body": False}]

        async def receive():
            return asked.pop() if asked else await asyncio.get_running_loop().create_future()

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", content_type.encode())]
        scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": headers, "query_string": b""}
        await self._app(scope | {"http_version": "1.1", "scheme": "http", "server": ("a", 1)}, receive, send)
        return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))

    def close(self):
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(params=["chat", "prompt"])
def app(request, uris, monkeypatch):
    uri, store = uris("pyfunc", request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc.scoring_server.app", types.ModuleType("app"))
    monkeypatch.setattr(fastapi, "FastAPI", importlib.import_module("fastapi.applications").FastAPI)
    with answers.loaded(uri) as model:
        app = _App(model)
        yield app
        app.close()


@pytest.mark.parametrize("app", ["prompt"], indirect=True)
def test_a_table_of_prompts_is_answered_in_order(app):
    prompts = [SPAIN, "What is the capital of France?", "Well, which one?"]
    table = pd.DataFrame({"prompt": prompts, "own": 1}).to_csv(index=False)
    status, reply = app.post(table.encode(), "text/csv")
    assert status == 200, reply
    assert reply == app.post({"inputs": [{"prompt": prompt} for prompt in prompts]})[1]


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


def test_a_random_body_is_answered_or_refused(app):
    """Never a fault of the server, a traceback or the text of a prompt."""
    statuses = set()

    @settings(max_examples=120, deadline=None)
    @given(BODY)
    @example({"messages": [{"role": "user", "content": MARK}], "max_tokens": 2})
    @example({"prompt": MARK, "max_tokens": 2})
    def ask(body):
        statuses.add(_assert_answered_or_refused(app, body))

    ask()
    assert statuses == {200, 400}


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/vnd.apache.parquet", "text/plain", ""])
def test_random_bytes_are_refused(app, kind):
    @settings(max_examples=20, deadline=None)
    @given(st.binary(max_size=30))
    def ask(content):
        assert _assert_answered_or_refused(app, content + MARK.encode(), kind) in (400, 415)

    ask()
