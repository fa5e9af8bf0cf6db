"""A judge behind an OpenAI-compatible address."""

import http.server
import json
import os
import threading
from typing import ClassVar

import pytest

from steps.evaluation import scorecard
from tests.support import make_row, write_prompt_set

HALF = '{"result": 0.5, "rationale": "half of it"}'


class JudgeServer(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint.

    Attributes:
        judgement: What it replies.
        requests: The path and body of every request.
        broken: An answer with this word gets no judgement.
    """

    judgement = HALF
    requests: ClassVar[list] = []
    broken = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, body))
        content = "no judgement" if self.broken and self.broken in json.dumps(body) else self.judgement
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage}
        encoded = json.dumps(reply | {"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def judge(monkeypatch):
    """The overrides that turn the judge on, and the class that answers for it."""
    handler = type("Judge", (JudgeServer,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    address = f"evaluate.judge.address=http://127.0.0.1:{server.server_port}/v1"
    yield ["evaluate.judge.model=org/judge-1", address], handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_judge_scores_every_answer_and_is_asked_again_only_for_what_failed(store, evaluate, tmp_path, judge):
    switch, handler = judge
    rows = [make_row("a"), make_row("b", "What is the capital of France?", ["Paris", "paris"])]
    words, sha256 = write_prompt_set(tmp_path / "mine.jsonl", rows)
    words = [words, f"run_id={store.greedy.run_id}", *switch]
    handler.judgement = "no judgement"
    done = evaluate(*words)
    assert done.returncode == 1
    assert "The judge could not score row 'a'" in done.stderr
    handler.judgement, handler.broken = HALF, "France"
    assert evaluate(*words).stderr.count("The judge could not score") == 1
    handler.broken, handler.requests[:] = None, []
    handler.judgement = '{"result": 7, "rationale": "too good"}'
    assert "must give row 'b' a number from 0 to 1, got 7" in evaluate(*words).stderr
    # A judgement that was paid for is not asked again, whatever happened to the other row's.
    assert not any("Spain" in json.dumps(body) for _, body in handler.requests)
    handler.judgement, handler.requests[:] = HALF, []
    assert evaluate(*words).returncode == 0
    assert len(handler.requests) == 1
    assert {path for path, _ in handler.requests} == {"/v1/chat/completions"}
    assert {body["model"] for _, body in handler.requests} == {"org/judge-1"}
    bodies = [json.dumps(body) for _, body in handler.requests]
    assert all("Score how well the answer agrees" in body for body in bodies)
    assert any("The capital of France" in body and "paris" in body for body in bodies)
    metrics = scorecard.metrics_of(store.greedy, sha256)
    assert metrics["judge/ci_low"] < metrics["judge/mean"] == 0.5
    assert os.environ.get("OPENAI_API_KEY") is None
