"""What `predict` accepts and gives back: every form, any number of rows, all settings, and MLflow's own tools."""

import json
import subprocess
import sys
import types

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from steps.config.schema import Generation
from steps.evaluation import asking
from steps.interfaces import get_interface
from steps.wrappers.contract.forms import PIECE_ROWS
from steps.wrappers.contract.neutral import COLUMNS
from steps.wrappers.contract.requests import OPTIONS
from tests.conftest import SPAIN

FRANCE = "What is the capital of France?"
TEXTS = [SPAIN, FRANCE]


def _messages(text):
    return [{"role": "user", "content": text}]


def _row(interface, text=SPAIN, **fields):
    return ({"messages": _messages(text)} if interface == "chat" else {"prompt": text}) | fields


def _text(reply):
    return reply if isinstance(reply, str) else reply["choices"][0]["message"]["content"]


@pytest.fixture(params=["chat", "prompt"])
def interface(request):
    return request.param


@pytest.fixture
def stored(uris, interface, monkeypatch):
    """Return the URI of a model of the interface, in its store."""
    uri, store = uris("onnx", interface)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return uri


@pytest.fixture
def model(stored):
    with asking.loaded(stored) as model:
        yield model


LISTS = {
    "a list of texts": lambda interface, texts: texts,
    "an array of texts": lambda interface, texts: np.array(texts),
    "a named Series of texts": lambda interface, texts: pd.Series(texts, name="prompt"),
    "a Series without a name": lambda interface, texts: pd.Series(texts),
    "a frame without names": lambda interface, texts: pd.DataFrame(texts),
    "a list of objects": lambda interface, texts: [_row(interface, text) for text in texts],
    "a frame": lambda interface, texts: pd.DataFrame(
        [_row(interface, text) for text in texts], columns=list(_row(interface))
    ),
}


@pytest.mark.parametrize("form", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_lists_and_frames_give_a_list(model, interface, form, count):
    expected = [_text(model.predict(_row(interface, text))) for text in TEXTS[:count]]
    replies = model.predict(form(interface, TEXTS[:count]))
    assert isinstance(replies, list)
    assert [_text(reply) for reply in replies] == expected


def test_object_with_a_list_gives_a_list(model, interface):
    (subject,) = _row(interface)
    for texts in (TEXTS[:1], TEXTS):
        replies = model.predict({subject: [_row(interface, text)[subject] for text in texts], "max_tokens": 4})
        assert [_text(reply) for reply in replies] == [
            _text(model.predict(_row(interface, text, max_tokens=4))) for text in texts
        ]


def test_text_and_object_give_one_object(model, interface):
    kind = dict if interface == "chat" else str
    for request in (SPAIN, _row(interface)):
        reply = model.predict(request)
        assert isinstance(reply, kind)
        assert "Madrid" in _text(reply)


@pytest.mark.parametrize("value", [5, b"a", [5], [["a"]], {"question": SPAIN}], ids=str)
def test_anything_else_is_refused(model, value):
    with pytest.raises(MlflowException, match=r"\[[a-z_]+\] "):
        model.predict(value)


def test_any_number_of_rows_is_answered_in_pieces(model, interface, monkeypatch):
    """No more than two pieces are queued or running at any time."""
    scheduler, most = model.unwrap_python_model().scheduler, []
    submit = scheduler.submit

    def watch(sequences, **options):
        submit(sequences, **options)
        most.append(len(scheduler._waiting) + scheduler.running)

    monkeypatch.setattr(scheduler, "submit", watch)
    frame = pd.DataFrame([_row(interface, TEXTS[index % 2]) for index in range(3 * PIECE_ROWS + 5)])
    replies = [_text(reply) for reply in model.predict(frame, params={"max_tokens": 7})]
    assert replies[:2] * (len(frame) // 2) + replies[:1] == replies
    assert len(most) == 4
    assert max(most) <= 2 * PIECE_ROWS


def test_callers_in_the_process_wait_for_room_in_the_queue(model, interface, monkeypatch):
    module = sys.modules[type(model.unwrap_python_model().scheduler).__module__]
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    rows = [_row(interface, n=2, max_tokens=1)] * (2 * PIECE_ROWS)
    assert len(model.predict(rows)) == len(rows)


def test_refused_row_is_named_before_anything_is_generated(model, interface, monkeypatch):
    monkeypatch.setattr(model.unwrap_python_model().scheduler, "submit", None)
    rows = [_row(interface)] * PIECE_ROWS + [_row(interface, n=0)]
    with pytest.raises(MlflowException, match=rf"^\[invalid_n\] row {PIECE_ROWS}: n must be"):
        model.predict(rows)


TABLES = {
    "a frame": lambda interface, texts: pd.DataFrame(
        {
            ("messages" if interface == "chat" else "prompt"): [
                text and (_messages(text) if interface == "chat" else text) for text in texts
            ]
        }
    ),
    "a Series": lambda interface, texts: pd.Series(texts),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("texts", [[SPAIN, None, FRANCE], [None]], ids=["among others", "alone"])
def test_null_row_of_a_table_is_an_error_of_that_row(model, interface, table, texts):
    replies = model.predict(table(interface, texts))
    for text, reply in zip(texts, replies, strict=True):
        if text is None:
            assert _text(reply).startswith(("[empty_conversation] ", "[not_text] "))
        else:
            assert _text(reply) == _text(model.predict(text))
        if interface == "chat":
            assert (reply["choices"][0]["finish_reason"] == "error") is (text is None)


def test_table_without_the_column_is_refused(model):
    with pytest.raises(MlflowException, match="row 0"):
        model.predict(pd.DataFrame({"question": TEXTS}))


def test_no_row_ends_a_job_of_spark(model, interface, monkeypatch):
    """Stand in for pyspark, which these tests do not need: it is there, and this is one of its tasks."""
    context = types.SimpleNamespace(get=lambda: "a task")
    monkeypatch.setitem(sys.modules, "pyspark", types.SimpleNamespace(TaskContext=context))
    replies = model.predict([_row(interface), _row(interface, temperature=9), _row(interface, "")])
    assert "Madrid" in _text(replies[0])
    assert [_text(reply).partition("]")[0] for reply in replies[1:]] == ["[invalid_temperature", "[empty_text"]


def _streamed(model, request, params=None):
    pieces = model.predict_stream(request, params=params)
    return "".join(
        piece if isinstance(piece, str) else piece["choices"][0]["delta"].get("content", "") for piece in pieces
    )


HOT = {"temperature": 2.0, "max_tokens": 8, "seed": 5}
SCHEMA = {"name": "city", "strict": True, "schema": {"type": "object", "properties": {"city": {"enum": ["a", "b"]}}}}
SETTINGS = [
    {"max_tokens": 2},
    {"stop": [" of"]},
    {"temperature": 2.0, "top_k": 1},
    {"temperature": 2.0, "top_p": 1e-9},
    HOT,
    {"temperature": 2.0, "max_tokens": 8, "custom_inputs": {"seed": 5}},
    {"temperature": 2.0, "custom_inputs": {"top_k": 1}},
    {"max_completion_tokens": 2},
    {"repetition_penalty": 1.0, "min_p": 0.0, "tools": [], "functions": [], "tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}, "max_tokens": 12},
    {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "max_tokens": 12},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_are_honoured_as_fields_and_as_params(model, interface, settings):
    expected = _text(model.predict(_row(interface, **settings)))
    row = _row(interface)
    assert _text(model.predict(row, params=settings)) == expected
    assert _text(model.predict(pd.DataFrame([row]), params=settings)[0]) == expected
    assert _streamed(model, row, settings) == expected
    assert _streamed(model, row | settings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        *({"presence_penalty": 2.5}, {"frequency_penalty": -3.0}, {"n": 0}, {"top_k": -1}),
        *({"repetition_penalty": 1.1}, {"min_p": 0.1}, {"custom_inputs": {"seed": -1}}, {"max_completion_tokens": 0}),
        *({"tools": [{"type": "function"}]}, {"functions": [{"name": "f"}]}, {"tool_choice": "required"}),
        *({"response_format": {"type": "xml"}}, {"logit_bias": {"x": 1}}, {"top_logprobs": 21}),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_from_every_side(model, interface, settings):
    row, (name,) = _row(interface), settings.get("custom_inputs", settings)
    calls = [
        lambda: model.predict(row | settings),
        lambda: model.predict(row, params=settings),
        lambda: _streamed(model, row | settings),
        lambda: _streamed(model, row, settings),
    ]
    for call in calls:
        with pytest.raises(MlflowException, match=name):
            call()


def test_bias_is_honoured_as_a_field_and_refused_as_a_param(model, interface, stored):
    row, bias = _row(interface), {"logit_bias": {"5": 100}, "max_tokens": 3}
    expected = _text(model.predict(row | bias))
    assert expected != _text(model.predict(row | {"max_tokens": 3}))
    assert _streamed(model, row | bias) == expected
    for call in (model.predict, lambda *arguments: _streamed(model, *arguments)):
        with pytest.raises(MlflowException, match="logit_bias"):
            call(row, bias)


@pytest.mark.parametrize("interface", ["chat"], indirect=True)
def test_log_probabilities_of_a_stream_are_those_of_the_reply(model, interface):
    row, settings = _row(interface), {"logprobs": True, "top_logprobs": 2}
    expected = model.predict(row | settings)["choices"][0]["logprobs"]["content"]
    assert len(expected) > 1
    for request, params in ((row | settings, None), (row, settings)):
        chunks = [chunk["choices"][0] for chunk in model.predict_stream(request, params=params)]
        assert [entry for chunk in chunks for entry in chunk.get("logprobs", {}).get("content", [])] == expected
    assert not any("logprobs" in chunk["choices"][0] for chunk in model.predict_stream(row))


def test_signature_has_every_field_that_a_row_is_searched_for(interface):
    signature = get_interface(interface).signature(Generation())
    names = {*OPTIONS, *COLUMNS} - {"stream"}
    assert {param.name for param in signature.params} >= names
    assert {*signature.inputs.input_names()} >= names


def test_signature_covers_every_setting_without_a_warning(model, interface, caplog):
    with caplog.at_level("WARNING"):
        model.predict(_row(interface), params=HOT)
        _streamed(model, _row(interface, **HOT))
    assert caplog.messages == []


CONFIGS = {
    "max_tokens": ({"generation": {"max_tokens": 3}}, {"max_tokens": 3}),
    "several": ({"generation": {"temperature": 2.0, "seed": 5, "max_tokens": 8}}, HOT),
    "nothing": ({"generation": {"max_tokens": None}}, {}),
    "the batch": ({"engine": {"max_batch_size": 2}}, {}),
}


@pytest.mark.parametrize(("config", "settings"), CONFIGS.values(), ids=CONFIGS)
def test_partial_model_config_is_completed(stored, interface, config, settings):
    with asking.loaded(stored) as model:
        expected = _text(model.predict(_row(interface, **settings)))
    model = mlflow.pyfunc.load_model(stored, model_config=config)
    assert _text(model.predict(_row(interface))) == expected
    # The row and the params still win.
    assert len(_text(model.predict(_row(interface, max_tokens=1))).split()) <= 1
    assert len(_text(model.predict(_row(interface), params={"max_tokens": 1})).split()) <= 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"generation": {"max_token": 3}}, "model_config.generation.max_token is not a known key"),
        ({"generation": {"temperature": 5}}, "temperature must be at least 0 and at most 2, got 5"),
        ({"generation": 5}, "model_config.generation must be an object, got 5"),
        ({"engine": {"max_batch_size": 0}}, "max_batch_size must be a whole number"),
        ({"engine": {"prefix_cache_mb": 0.5}}, "prefix_cache_mb must be a whole number, at least 0"),
        ({"engine": {"name": "torch"}}, "model_config.engine.name must stay 'onnxruntime', got 'torch'"),
        (
            {"engine": {"execution_provider": "cuda"}},
            "engine.execution_provider cannot be used here: got 'cuda'; use cpu",
        ),
        ({"interface": "other"}, "model_config.interface must stay"),
    ],
    ids=str,
)
def test_wrong_model_config_is_refused_when_the_model_is_loaded(stored, config, words):
    with pytest.raises(MlflowException, match=words):
        mlflow.pyfunc.load_model(stored, model_config=config)


@pytest.mark.parametrize("device", ["cuda:99", "no such device"])
def test_a_device_that_is_not_there_is_refused_when_the_model_is_loaded(uris, monkeypatch, device):
    uri, store = uris("pyfunc", "chat")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(MlflowException, match=f"engine.device cannot be used here: got '{device}'; use auto or cpu"):
        mlflow.pyfunc.load_model(uri, model_config={"engine": {"device": device}})


INPUTS = {
    "a frame": lambda interface: pd.DataFrame([_row(interface, text) for text in TEXTS]),
    "a frame without names": lambda interface: pd.DataFrame(TEXTS),
    "texts": lambda interface: TEXTS,
    "objects": lambda interface: [_row(interface, text) for text in TEXTS],
}


# MLflow itself compares the names of a frame's columns with a range.
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")
@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_mlflows_predict_answers_as_the_server_does(stored, interface, tmp_path, data):
    output = tmp_path / "output.json"
    mlflow.models.predict(stored, data(interface), env_manager="local", output_path=str(output))
    assert [
        ("Madrid" in _text(reply), "Paris" in _text(reply)) for reply in json.loads(output.read_text())["predictions"]
    ] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["prompt"], indirect=True)
def test_mlflows_command_reads_csv_as_the_server_does(stored, tmp_path):
    table, output = tmp_path / "table.csv", tmp_path / "output.json"
    table.write_text('prompt,max_tokens\nNA,2\n12345,2\n007,2\nnull,\n"a, b",2\n')
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", stored, "-t", "csv", "--env-manager", "local"]
    done = subprocess.run(
        [*command, "-i", table, "-o", output], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    replies = json.loads(output.read_text())["predictions"]
    with asking.loaded(stored) as model:
        rows = [{"prompt": text, "max_tokens": 2} for text in ("NA", "12345", "007", "null", "a, b")]
        del rows[3]["max_tokens"]
        assert replies == model.predict(rows)


def test_mlflows_functions_are_restored_after_a_prediction(stored, interface, tmp_path):
    from mlflow.pyfunc import scoring_server

    before = scoring_server._parse_json_data, scoring_server.parse_csv_input
    mlflow.models.predict(stored, _row(interface), env_manager="local", output_path=str(tmp_path / "output.json"))
    assert (scoring_server._parse_json_data, scoring_server.parse_csv_input) == before
