"""The extension of MLflow's scoring server, on a real uvicorn in this process."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import urllib.error
import urllib.request

import fastapi
import httpx
import pytest
import uvicorn

from steps.wrappers.serving import app
from steps.wrappers.serving.app import extend_server, extended_app
from steps.wrappers.serving.client import CLIENT, Client
from steps.wrappers.serving.messages import safe_error


class _Sequence:
    cancelled = False

    def cancel(self):
        self.cancelled = True


class _Server:
    """An app whose /invocations waits in a thread until it is released or its sequence is cancelled."""

    def __init__(self):
        self.sequence, self.entered, self.released = _Sequence(), threading.Event(), threading.Event()
        self.healthy, self.bodies = True, []
        app = extended_app(fastapi.FastAPI, list, lambda: self.healthy)()

        def predict():
            CLIENT.get().wait_for([self.sequence])
            self.entered.set()
            while not (self.released.wait(0.01) or self.sequence.cancelled):
                pass

        @app.post("/invocations")
        async def invocations(request: fastapi.Request):
            self.bodies.append(await request.json())
            await asyncio.to_thread(predict)
            return {"answered": True}

        @app.get("/health")
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

    def post(self, timeout=30, body=b'{"inputs": {}}', content_type="application/json", **headers):
        headers = {"Content-Type": content_type} | headers
        request = urllib.request.Request(f"{self.address}/invocations", body, headers)
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return json.load(reply)

    def stop(self):
        self.released.set()
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


def test_request_is_answered(server):
    server.released.set()
    assert server.post() == {"answered": True}


def test_sequences_are_cancelled_when_the_client_leaves(server):
    with contextlib.suppress(TimeoutError):
        server.post(timeout=0.2)
    assert server.entered.wait(30)
    assert _until(lambda: server.sequence.cancelled)


def test_request_above_the_limit_is_refused_but_ping_is_answered(server, monkeypatch):
    monkeypatch.setattr(app, "MAX_REQUESTS", 1)
    waiting = threading.Thread(target=server.post)
    waiting.start()
    assert server.entered.wait(30)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post()
    with refusal.value:
        assert refusal.value.code == 429
        assert json.load(refusal.value)["message"].startswith("[queue_full] 1 requests")
    urllib.request.urlopen(f"{server.address}/ping", timeout=30).close()
    server.released.set()
    waiting.join()


def test_sequences_of_a_client_that_has_already_left_are_cancelled():
    client, sequence = Client(), _Sequence()
    client.leave()
    client.wait_for([sequence])
    assert sequence.cancelled


def test_fastapi_is_not_replaced_outside_of_the_scoring_server():
    before = fastapi.FastAPI
    extend_server(list, lambda: True)
    assert fastapi.FastAPI is before


@pytest.mark.parametrize("path", ["ping", "health"])
def test_ping_reports_a_failing_engine(server, path):
    server.healthy = False
    with pytest.raises(urllib.error.HTTPError) as unhealthy:
        urllib.request.urlopen(f"{server.address}/{path}", timeout=30)
    with unhealthy.value:
        assert unhealthy.value.code == 503
        assert json.load(unhealthy.value)["message"].startswith("[engine_failed] ")
    server.healthy = True
    urllib.request.urlopen(f"{server.address}/ping", timeout=30).close()


ROW = {"prompt": "a", "n": None}
PARAMS = {"n": 2, "seed": 3}
CHAT = {"messages": [], "n": 1}


def _envelope(rows, params=None):
    return {"phi3_request": {"rows": rows, "params": params}}


REWRITTEN = {
    "messages": (CHAT, {"messages": []} | _envelope(CHAT)),
    "messages with params": (CHAT | {"params": PARAMS}, {"messages": []} | _envelope(CHAT, PARAMS)),
    "inputs": ({"inputs": ROW, "params": PARAMS}, {"inputs": _envelope(ROW, PARAMS)}),
    "a text": ({"inputs": "a"}, {"inputs": _envelope("a")}),
    "texts": ({"inputs": ["a"], "params": PARAMS}, {"inputs": _envelope(["a"], PARAMS)}),
    "prompt": (
        {"prompt": "a", "n": 1, "params": {"seed": 1}},
        {"inputs": _envelope({"prompt": "a", "n": 1}, {"seed": 1})},
    ),
    "instances": ({"instances": [ROW]}, {"inputs": _envelope([ROW])}),
    "records": ({"dataframe_records": [ROW, ROW]}, {"inputs": _envelope([ROW, ROW])}),
    "split": (
        {"dataframe_split": {"columns": ["prompt", "n"], "index": [0], "data": [["a", None]]}, "params": PARAMS},
        {"inputs": _envelope([ROW], PARAMS)},
    ),
    "split without names": ({"dataframe_split": {"data": [["a"], ["b"]]}}, {"inputs": _envelope(["a", "b"])}),
}


@pytest.mark.parametrize(("body", "rewritten"), REWRITTEN.values(), ids=REWRITTEN)
def test_every_form_of_a_body_is_rewritten_for_mlflow(server, body, rewritten):
    server.released.set()
    server.post(body=json.dumps(body).encode())
    assert server.bodies == [rewritten]


def _deep(levels):
    return b'{"inputs": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


SECRET = "secret"
SPLIT = {"columns": ["prompt"], "data": [[SECRET]]}
REFUSED = {
    "cut": (b'{"inputs":\n "secret', "invalid_json", "(line 2, column 2)"),
    "empty": (b"", "invalid_json", "(line 1, column 1)"),
    "not UTF-8": (b'"secret\xff"', "invalid_json", "byte 7 is not UTF-8"),
    "a long number": (b'{"secret": ' + b"9" * 5000 + b"}", "invalid_json", "a number is too long"),
    "33 levels": (_deep(33), "invalid_json", "at most 32 levels"),
    "endless levels": (b"[" * 500_000, "invalid_json", "deeper than 32 levels"),
    "too large": (b'"' + b"a" * 3_000_000 + b'"', "too_large", "at most 1000000 bytes, got at least 1"),
    "a list": ([SECRET], "invalid_request", "the body must be a JSON object with messages"),
    "no known form": ({SECRET: 1}, "invalid_request", "the body must be"),
    "two forms": ({"inputs": SECRET, "instances": []}, "invalid_request", "exactly one of inputs"),
    "a setting next to inputs": ({"inputs": SECRET, "n": 1}, "invalid_request", "(and params)"),
    "params in a list": ({"inputs": SECRET, "params": [1]}, "invalid_params", "params must be an object, got list"),
    "records of text": ({"dataframe_records": [SECRET]}, "invalid_dataframe", "a list of objects"),
    "records in an object": ({"dataframe_records": {SECRET: 1}}, "invalid_dataframe", "a list of objects"),
    "split in a list": (
        {"dataframe_split": [SECRET]},
        "invalid_dataframe",
        "columns must be a list of unique names",
    ),
    "split with a name twice": (
        {"dataframe_split": SPLIT | {"columns": [SECRET, SECRET]}},
        "invalid_dataframe",
        "unique names",
    ),
    "split without names and with two cells": (
        {"dataframe_split": {"data": [[SECRET, SECRET]]}},
        "invalid_dataframe",
        "unless each row has one value",
    ),
    "split without data": ({"dataframe_split": {"columns": [SECRET]}}, "invalid_dataframe", "a list of rows"),
    "split with a long row": (
        {"dataframe_split": SPLIT | {"data": [[SECRET, 1]]}},
        "invalid_dataframe",
        "each a list of 1 value(s)",
    ),
}


@pytest.mark.parametrize(("body", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_unreadable_body_is_refused(server, body, code, words):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post(body=body if isinstance(body, bytes) else json.dumps(body).encode())
    with refusal.value:
        message = json.load(refusal.value)["message"]
        assert refusal.value.code == 400
    assert message.startswith(f"[{code}] ")
    assert words in message
    assert SECRET not in message
    assert server.bodies == []


def test_body_with_32_levels_is_accepted(server):
    server.released.set()
    assert server.post(body=_deep(32)) == {"answered": True}


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/jsonl"])
def test_wrong_content_type_is_refused_with_415(server, content_type):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post(content_type=content_type)
    with refusal.value:
        assert refusal.value.code == 415
        assert json.load(refusal.value)["message"].startswith(
            "[content_type] the content type must be application/json"
        )


UTF_8 = ["utf-8", "UTF-8", "utf8", "UTF8", "utf_8", '"utf-8"', "us-ascii", "US-ASCII", "ascii", "utf-8-sig"]


@pytest.mark.parametrize("charset", UTF_8)
@pytest.mark.parametrize("media_type", ["application/json", "text/csv"])
def test_every_name_of_utf_8_is_accepted(server, media_type, charset):
    server.released.set()
    body = '{"inputs": "é"}' if media_type == "application/json" else "prompt\né"
    assert server.post(body=body.encode(), content_type=f"{media_type}; charset={charset}") == {"answered": True}
    assert "é" in str(server.bodies)


def _refused(server, **arguments):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post(**arguments)
    with refusal.value:
        message = json.load(refusal.value)["message"]
    assert server.bodies == []
    return refusal.value.code, message


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "utf-7", "nonsense", "rot13", "''"])
def test_another_charset_is_refused_with_415(server, charset):
    status, message = _refused(server, content_type=f"application/json; charset={charset}")
    assert (status, message.partition("]")[0]) == (415, "[content_type")


BODY = '{"inputs": "é"}'.encode()


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", " gzip ", "gzip, identity", "identity,gzip"])
@pytest.mark.parametrize("parts", [[BODY], [BODY[:5], BODY[5:]]], ids=["one member", "two members"])
def test_gzip_body_is_decoded(server, encoding, parts):
    server.released.set()
    body = b"".join(map(gzip.compress, parts))
    assert server.post(body=body, **{"Content-Encoding": encoding}) == {"answered": True}
    assert server.bodies == [{"inputs": {"phi3_request": {"rows": "é", "params": None}}}]


@pytest.mark.parametrize("encoding", ["identity", "Identity, identity", ""])
def test_body_that_is_not_encoded_may_say_so(server, encoding):
    server.released.set()
    assert server.post(body=BODY, **{"Content-Encoding": encoding}) == {"answered": True}


BOMB = gzip.compress(b'{"inputs": "' + b"a" * 100_000_000 + b'"}')
ENCODED = {
    "another encoding": ("br", BODY, 415, "[content_encoding] the content encoding must be gzip or none, got 'br'"),
    "deflate": ("deflate", BODY, 415, "[content_encoding] the content encoding must be gzip or none, got 'deflate'"),
    "two encodings": ("gzip, gzip", BODY, 415, "[content_encoding] "),
    "no header": (None, gzip.compress(BODY), 415, "[content_encoding] the body is compressed with gzip; send the"),
    "not gzip": ("gzip", BODY, 400, "[invalid_gzip] "),
    "empty": ("gzip", b"", 400, "[invalid_json] "),
    "cut": ("gzip", gzip.compress(BODY)[:-9], 400, "[invalid_gzip] "),
    "damaged": ("gzip", gzip.compress(BODY)[:12] + b"\xff" * 20, 400, "[invalid_gzip] "),
    "a bomb": ("gzip", BOMB, 400, "[too_large] a body may have at most 1000000 bytes when it is decoded"),
    "not JSON": ("gzip", gzip.compress(b"secret"), 400, "[invalid_json] "),
}


@pytest.mark.parametrize(("encoding", "body", "status", "message"), ENCODED.values(), ids=ENCODED)
def test_encoding_that_cannot_be_read_is_refused(server, encoding, body, status, message):
    refused = _refused(server, body=body, **({"Content-Encoding": encoding} if encoding else {}))
    assert refused[0] == status
    assert refused[1].startswith(message)
    assert "secret" not in refused[1]


@pytest.mark.parametrize("path", ["ping", "health"])
@pytest.mark.parametrize(("healthy", "status"), [(True, 200), (False, 503)])
def test_head_is_get_without_a_body(server, path, healthy, status):
    server.healthy = healthy
    reply = httpx.head(f"{server.address}/{path}")
    assert (reply.status_code, reply.content) == (status, b"")
    assert reply.headers["content-length"] == httpx.get(f"{server.address}/{path}").headers["content-length"]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *(("invocations", "POST"), ("ping", "GET"), ("invocations/", "POST"), ("ping/", "HEAD")),
        *(("v1/chat/completions/", "POST"), ("v1/models/phi3@champion", "GET"), ("v1/models/", "GET")),
    ],
)
def test_options_lists_the_methods(server, path, method):
    reply = httpx.options(f"{server.address}/{path}")
    assert (reply.status_code, reply.content) == (204, b"")
    assert method in reply.headers["allow"].split(", ")
    assert "access-control-allow-origin" not in reply.headers


def test_slash_at_the_end_of_a_route_is_left_out(server):
    server.released.set()
    json_type = {"Content-Type": "application/json"}
    assert httpx.post(f"{server.address}/invocations/", content=b'{"inputs": {}}', headers=json_type).status_code == 200
    for method in ("GET", "HEAD"):
        assert httpx.request(method, f"{server.address}/ping//").status_code == 200
    assert httpx.get(f"{server.address}/other/").status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_other_methods_are_refused_with_405(server, method):
    assert httpx.request(method, f"{server.address}/invocations").status_code == 405


def _preflight(server, origin):
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return httpx.options(f"{server.address}/invocations", headers=headers)


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1", "https://localhost", "http://[::1]:80"]
)
def test_page_of_this_machine_may_ask(server, origin):
    reply = _preflight(server, origin)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == origin
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "content-type"
    server.released.set()
    for body, status in ((b'{"inputs": {}}', 200), (b"{", 400)):
        reply = httpx.post(
            f"{server.address}/invocations",
            content=body,
            headers={"Origin": origin, "Content-Type": "application/json"},
        )
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == origin


FOREIGN = ["https://example.com", "http://localhost.example.com", "http://localhost:3000.example.com", "null"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_page_from_elsewhere_may_ask_only_if_it_is_configured(server, monkeypatch, origin):
    reply = _preflight(server, origin)
    assert reply.status_code == 204
    assert not {name for name in reply.headers if name.startswith("access-control")}
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", f"https://example.org, {origin}")
    assert _preflight(server, origin).headers["access-control-allow-origin"] == origin
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    assert _preflight(server, origin).headers["access-control-allow-origin"] == origin


def test_body_that_does_not_arrive_is_refused_with_408(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "1")
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=30) as slow:
        head = "POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        slow.sendall(head.encode() + b"{")
        assert b" 408 " in slow.recv(100)


INVALID = 400, "invalid_request", "the body must be a JSON object"
BROKEN = 500, "engine_failed", "the model failed"
ERRORS = {
    "params": (
        400,
        {"message": "Failed to predict data 'secret'. \nError: bad n", "error_code": "BAD_REQUEST"},
        (400, "invalid_params", "bad n"),
    ),
    "our refusal": (
        429,
        {"message": "[queue_full] wait", "error_code": "REQUEST_LIMIT_EXCEEDED"},
        (429, "queue_full", "wait"),
    ),
    "another error of MLflow": (
        400,
        {"message": "secret", "error_code": "BAD_REQUEST", "stack_trace": "secret"},
        INVALID,
    ),
    "an internal error": (
        400,
        {"message": "Encountered an unexpected error", "error_code": "BAD_REQUEST", "stack_trace": "Traceback"},
        BROKEN,
    ),
    "not JSON": (500, "Internal Server Error secret", BROKEN),
    "another object": (500, ["secret"], BROKEN),
    "a time-out": (504, "secret", (504, "timed_out", "longer than this server waits")),
}


@pytest.mark.parametrize(("status", "body", "expected"), ERRORS.values(), ids=ERRORS)
def test_error_of_mlflow_is_sent_without_the_input_and_the_traceback(status, body, expected):
    error = safe_error(status, json.dumps(body).encode())
    assert (error.get_http_status_code(), error.code) == expected[:2]
    assert expected[2] in error.message
    assert "secret" not in error.serialize_as_json()
    assert "stack_trace" not in error.serialize_as_json()
