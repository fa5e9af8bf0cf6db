"""OpenAI's routes, /metrics and streams of /invocations, in MLflow's own app on a real uvicorn, with a real engine."""

import contextlib
import json
import socket
import sys
import threading
import time
import types
import warnings

import fastapi
import httpx
import mlflow
import pytest
import uvicorn

from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.serving import app as serving_app
from steps.wrappers.serving.app import SERVER_MODULE, extend_server
from steps.wrappers.serving.identity import Identity
from steps.wrappers.serving.metrics import Metrics
from steps.wrappers.serving.routes import Service
from tests.conftest import SPAIN
from tests.support import wait_until
from tests.wrappers.conftest import DEFAULTS

SECRET = "marked-secret"
USER = {"role": "user", "content": SPAIN}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def _mlflows_app(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about type hints of its own
        from mlflow.pyfunc import scoring_server
    return scoring_server.init(model)


class _Model:
    """What MLflow's server needs of a model that only our routes ask."""

    metadata = types.SimpleNamespace(get_input_schema=lambda: None)


class _Server(httpx.Client):
    """A client of MLflow's app with our routes, in this process."""

    def __init__(self, scheduler, tokenizer, interface):
        contract = Contract(INTERFACES[interface], tokenizer, tokenizer.context_length, DEFAULTS)
        self.scheduler = scheduler
        identity = Identity("phi3", "3", "champion", "f" * 64)
        service = Service(identity, contract, scheduler, Metrics(scheduler, tokenizer.context_length))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, SERVER_MODULE, types.ModuleType("app"))
            patch.setattr(fastapi, "FastAPI", fastapi.FastAPI)
            extend_server(contract.frame_rows, lambda: True, service)
            app = _mlflows_app(_Model())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        wait_until(lambda: self._server.started)
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def stop(self):
        self.close()
        self._server.should_exit = True
        self._thread.join()

    def chat(self, **fields):
        reply = self.post(CHAT, json={"messages": [USER]} | fields)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def complete(self, **fields):
        reply = self.post(COMPLETIONS, json={"prompt": SPAIN, "max_tokens": 5} | fields)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def events(self, path, **body):
        """The decoded events of a stream, without the last one, which says that it is done."""
        reply = self.post(path, json={"stream": True} | body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def serving(scheduler, tokenizer, interface="chat"):
    server = _Server(scheduler, tokenizer, interface)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module", params=["torch", "onnx"])
def server(request, tokenizer):
    with serving(request.getfixturevalue(f"{request.param}_scheduler"), tokenizer) as server:
        yield server


@pytest.fixture(scope="module")
def prompts(onnx_scheduler, tokenizer):
    with serving(onnx_scheduler, tokenizer, "prompt") as server:
        yield server


def test_chat_completion_has_openais_shape(server):
    reply = server.chat(user="u", metadata={"a": "b"}, model="any")
    assert reply["object"] == "chat.completion"
    assert (reply["model"], reply["system_fingerprint"]) == ("phi3/3", "f" * 64)
    (choice,) = reply["choices"]
    assert "Madrid" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_content_parts_and_the_developer_role_mean_text_and_system(server):
    system = {"role": "system", "content": "Be brief."}
    parts = [{"type": "text", "text": SPAIN[:5]}, {"type": "text", "text": SPAIN[5:]}]
    plain = server.chat(messages=[system, USER])
    same = server.chat(messages=[system | {"role": "developer"}, {"role": "user", "content": parts}])
    assert same["choices"] == plain["choices"]
    # The second one finds the beginning of its prompt computed.
    for reply in (plain, same):
        assert 0 <= reply["usage"].pop("prompt_tokens_details")["cached_tokens"] < reply["usage"]["prompt_tokens"]
    assert same["usage"] == plain["usage"]


def test_settings_are_honoured(server):
    assert len(server.chat(n=3, temperature=1, seed=1)["choices"]) == 3
    assert server.chat(max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    assert server.chat(max_tokens=2)["choices"][0]["finish_reason"] == "length"
    assert "Mad" not in server.chat(stop="Mad")["choices"][0]["message"]["content"]
    sampled = [server.chat(temperature=2, seed=seed, max_tokens=8)["choices"] for seed in (5, 5, 6)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert server.chat(temperature=2, top_k=1)["choices"] == server.chat()["choices"]


def test_end_token_that_is_ignored_ends_nothing(server):
    ended, whole = (server.chat(max_tokens=100, ignore_eos=ignored)["choices"][0] for ignored in (False, True))
    assert (ended["finish_reason"], whole["finish_reason"]) == ("stop", "length")
    assert whole["message"]["content"].startswith(ended["message"]["content"])
    shape = {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}
    assert server.chat(response_format=shape, ignore_eos=True)["choices"][0]["message"]["content"] == "1"


def test_chat_logprobs_join_to_the_text(server):
    (choice,) = server.chat(logprobs=True, top_logprobs=2)["choices"]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert all(entry["logprob"] == entry["top_logprobs"][0]["logprob"] for entry in entries)
    assert "logprobs" not in server.chat()["choices"][0]


def test_stream_joins_to_the_reply(server):
    whole = server.chat(n=2, temperature=1, seed=3, logprobs=True)
    chunks = server.events(
        CHAT, messages=[USER], n=2, temperature=1, seed=3, logprobs=True, stream_options={"include_usage": True}
    )
    assert len({(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for expected in whole["choices"]:
        own = [choice for choice in choices if choice["index"] == expected["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == expected["message"]["content"]
        assert own[-1]["finish_reason"] == expected["finish_reason"]
        scores = [entry for choice in own for entry in (choice.get("logprobs") or {}).get("content", [])]
        assert [entry["token"] for entry in scores] == [entry["token"] for entry in expected["logprobs"]["content"]]


def test_stream_counts_its_tokens_as_it_goes(server):
    options = {"continuous_usage_stats": True}
    chunks = server.events(CHAT, messages=[USER], ignore_eos=True, max_tokens=20, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 20


def test_completions_continue_texts_and_token_ids(server, tokenizer):
    by_text = server.complete(prompt=[SPAIN, "a b"], n=2)
    by_ids = server.complete(prompt=[tokenizer.encode(SPAIN), tokenizer.encode("a b")], n=2)
    assert [choice["index"] for choice in by_text["choices"]] == [0, 1, 2, 3]
    assert by_ids["choices"] == by_text["choices"]
    assert by_text["usage"] == by_ids["usage"]
    assert server.complete(prompt=tokenizer.encode(SPAIN))["choices"][0] == by_text["choices"][0]


def test_completions_echo_the_prompt_with_its_logprobs(server, tokenizer):
    (choice,) = server.complete(echo=True, logprobs=2, max_tokens=1)["choices"]
    scores = choice["logprobs"]
    assert choice["text"].startswith(SPAIN)
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    assert all(len(best) == 2 for best in scores["top_logprobs"][1:])
    size = len(tokenizer.encode(SPAIN))
    assert "".join(scores["tokens"][:size]) == SPAIN
    assert scores["text_offset"][:2] == [0, len(scores["tokens"][0])]
    assert len(scores["tokens"]) == size + 1


@pytest.mark.parametrize("fields", [{}, {"echo": True, "logprobs": 1}], ids=["plain", "echo"])
def test_stream_of_completions_joins_to_the_reply(server, fields):
    (whole,) = server.complete(**fields)["choices"]
    chunks = [chunk["choices"][0] for chunk in server.events(COMPLETIONS, prompt=SPAIN, max_tokens=5, **fields)]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    if fields:
        streamed = [logprob for chunk in chunks for logprob in chunk["logprobs"]["token_logprobs"]]
        assert streamed[1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=1e-5)


REFUSED = {
    "temperature": (CHAT, {"messages": [USER], "temperature": 3}, "temperature", "invalid_temperature"),
    "n": (CHAT, {"messages": [USER], "n": 99}, "n", "invalid_n"),
    "no messages": (CHAT, {}, "messages", "empty_conversation"),
    "role": (CHAT, {"messages": [{"role": "tool", "content": SECRET}]}, "messages[0].role", "unknown_role"),
    "picture": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]},
        "messages[0].content[0]",
        "unsupported_content",
    ),
    "control token": (CHAT, {"messages": [USER | {"content": f"{SECRET}<|end|>"}]}, None, "control_token"),
    "tools": (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, "tools", "unsupported_field"),
    "audio": (CHAT, {"messages": [USER], "modalities": ["audio"]}, "modalities", "unsupported_field"),
    "unknown": (CHAT, {"messages": [USER], SECRET[:6]: 1}, "marked", "unsupported_field"),
    "stream": (CHAT, {"messages": [USER], "stream": "yes"}, "stream", "stream"),
    "stream_options": (CHAT, {"messages": [USER], "stream_options": {"include_usage": True}}, None, "stream_options"),
    "logprobs": (COMPLETIONS, {"prompt": SPAIN, "logprobs": 21}, "logprobs", "invalid_logprobs"),
    "a prompt of objects": (COMPLETIONS, {"prompt": [{"a": SECRET}]}, None, "not_text"),
    "a foreign id": (COMPLETIONS, {"prompt": [10**7]}, "prompt[0]", "invalid_prompt"),
    "no prompt": (COMPLETIONS, {"prompt": []}, "prompt", "empty_text"),
    "suffix": (COMPLETIONS, {"prompt": SPAIN, "suffix": "a"}, "suffix", "unsupported_field"),
    "best_of": (COMPLETIONS, {"prompt": SPAIN, "best_of": 2}, "best_of", "unsupported_field"),
    "too many": (COMPLETIONS, {"prompt": [SPAIN] * 257}, None, "too_many_rows"),
}


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSED.values(), ids=REFUSED)
def test_refusal_is_openais_error_and_never_repeats_the_prompt(server, path, body, param, code):
    reply = server.post(path, json=body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert param is None or error["param"] == param
    assert SECRET not in reply.text


def test_other_errors_have_openais_shape_too(server):
    cases = [
        (server.post(CHAT, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json"),
        (server.post(CHAT, content=b"[]", headers={"content-type": "application/json"}), 400, "invalid_request"),
        (server.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415, "content_type"),
        (server.get(CHAT), 405, "unknown_route"),
        (server.get("/v1/nothing"), 404, "unknown_route"),
        (server.get("/v1/models/nothing"), 404, "model_not_found"),
    ]
    for reply, status, code in cases:
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_models_are_listed_with_version_alias_and_fingerprint(server):
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["version"], model["alias"], model["fingerprint"]) == ("phi3", "3", "champion", "f" * 64)
    for name in ("phi3", "phi3@champion", "phi3/3"):
        assert server.get(f"/v1/models/{name}").json() == model


def test_metrics_count_requests_and_tokens(server):
    def metric(name):
        text = server.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = ["phi3_prompt_tokens_total", "phi3_completion_tokens_total", "phi3_time_to_first_token_seconds_count"]
    route = f'phi3_requests_total{{route="{CHAT}",status="200"}}'
    before = [metric(name) for name in [*names, route]]
    reply = server.chat()["usage"]
    wait_until(lambda: metric(names[2]) == before[2] + 1)
    after = [metric(name) for name in [*names, route]]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert grown == [reply["prompt_tokens"], reply["completion_tokens"], 1, 1]
    server.post("/no/such/path")
    text = server.get("/metrics").text
    assert 'route="other",status="404"' in text
    assert "no/such" not in text
    reused = "phi3_reused_prompt_tokens_total"
    shared = {"role": "user", "content": "Please answer this question in one word, and in no other way. " * 2}
    for _ in range(3):  # the first is remembered, the second finds its beginning shared
        server.chat(messages=[shared])
    wait_until(lambda: metric(reused) >= 16)
    for name in ("queue_length", "batch_size", "cache_tokens", "cache_use_ratio", "time_per_token_seconds_bucket"):
        assert f"phi3_{name}" in text


def test_mlflows_own_routes_are_still_there(server):
    assert server.get("/ping").status_code == server.get("/health").status_code == 200
    assert server.get("/version").text == mlflow.__version__
    assert server.head("/v1/models").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_place(server, monkeypatch, stream):
    scheduler, step = server.scheduler, server.scheduler.engine.step

    def slow_step(arriving):
        time.sleep(0.05)
        return step(arriving)

    monkeypatch.setattr(scheduler.engine, "step", slow_step)
    body = {"messages": [USER], "max_tokens": 200, "logit_bias": {"40": 100}, "n": 8, "stream": stream}
    with contextlib.suppress(httpx.ReadTimeout), server.stream("POST", CHAT, json=body, timeout=0.3) as reply:
        next(reply.iter_lines())  # only a stream has a line by then
    wait_until(lambda: scheduler.running == 8 or stream, seconds=3)
    started = time.monotonic()
    wait_until(lambda: scheduler.running == 0, seconds=10)
    # Without anybody leaving, they would run for ten seconds.
    assert time.monotonic() - started < 3


def test_full_server_answers_429(server, monkeypatch):
    monkeypatch.setattr(serving_app, "MAX_REQUESTS", 0)
    reply = server.post(CHAT, json={"messages": [USER]})
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "rate_limit_error")
    assert reply.headers["retry-after"] == "1"
    assert server.get("/v1/models").status_code == 200


def test_engine_failure_is_a_500_and_ends_a_stream(server, monkeypatch):
    def fail(_):
        raise RuntimeError(SECRET)

    monkeypatch.setattr(server.scheduler.engine, "step", fail)
    reply = server.post(CHAT, json={"messages": [USER]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert SECRET not in reply.text
    (error,) = server.events(CHAT, messages=[USER])
    assert error["error"]["code"] == "engine_failed"


def test_invocations_stream_chunks_of_a_chat(server):
    chunks = server.events("/invocations", messages=[USER])
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == server.chat()["choices"][0]["message"]["content"]
    reply = server.post("/invocations", json={"messages": [USER], "stream": True, "n": 2})
    assert (reply.status_code, reply.json()["message"].partition("]")[0]) == (400, "[stream")


STREAMED = {
    "field": {"prompt": SPAIN, "stream": True},
    "param": {"inputs": {"prompt": SPAIN}, "params": {"stream": True}},
    "row": {"inputs": [{"prompt": SPAIN, "stream": True}]},
}


@pytest.mark.parametrize("body", STREAMED.values(), ids=STREAMED)
def test_invocations_stream_pieces_of_a_prompt_model(prompts, body):
    reply = prompts.post("/invocations", json=body)
    assert reply.status_code == 200, reply.text
    *pieces, done = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert done == "[DONE]"
    assert "Madrid" in "".join(map(json.loads, pieces))


def test_prompt_model_serves_both_of_openais_routes(prompts):
    assert "Madrid" in prompts.chat()["choices"][0]["message"]["content"]
    assert prompts.complete()["object"] == "text_completion"


@pytest.mark.parametrize("source", ["variable", "file"])
def test_api_key_is_needed_if_one_is_set(onnx_scheduler, tokenizer, monkeypatch, tmp_path, source):
    if source == "variable":
        monkeypatch.setenv("PHI3_API_KEY", SECRET)
    else:
        (tmp_path / "keys").write_text(f"another\n{SECRET}\n")
        monkeypatch.setenv("PHI3_API_KEY_FILE", str(tmp_path / "keys"))
    with serving(onnx_scheduler, tokenizer) as server:
        for key in (None, "Bearer", "Bearer wrong", f"Basic {SECRET}", f"Bearer {SECRET}x"):
            headers = {"authorization": key} if key else {}
            for path in (CHAT, COMPLETIONS, "/invocations"):
                reply = server.post(path, json={}, headers=headers)
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert server.get("/metrics", headers=headers).status_code == 401
            assert server.get("/v1/models", headers=headers).status_code == 401
        assert server.get("/ping").status_code == 200
        server.headers["authorization"] = f"Bearer {SECRET}"
        assert "Madrid" in server.chat()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("name", "value"), [("PHI3_API_KEY", " "), ("PHI3_API_KEY_FILE", "/no/such/file")])
def test_key_that_is_set_but_empty_keeps_the_server_from_starting(onnx_scheduler, tokenizer, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match=name), serving(onnx_scheduler, tokenizer):
        pass


def test_cors_is_off_unless_an_origin_is_configured(server, monkeypatch):
    headers = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in server.options(CHAT, headers=headers).headers
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "http://localhost:3000")
    assert server.options(CHAT, headers=headers).headers["access-control-allow-origin"] == headers["origin"]
