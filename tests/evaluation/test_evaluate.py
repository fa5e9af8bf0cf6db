"""`evaluate` on real variants in a store of its own: killed, resumed, judged, and told what went wrong."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import mlflow
import pytest

from steps import build, command_line
from steps.config.schema import PromptSet
from steps.evaluation import answers, fit, prompt_set, scorecard
from steps.evaluation.journal import Journal
from steps.store.variants import Variant, find_variants
from tests.conftest import PROJECT

BATCH, ROWS = 8, 12
# The exit code of a process that a test ends.
KILLED = 99
# Speed has tests of its own.
QUICK = ["evaluate.speed=false"]
# Evaluations that die one after the other by kill -9 while they write a batch into the journal, when half of it is
# written; forked from a process that has paid for the imports. They never come to scoring, so they need no
# metrics.
MORTAL = """
import json, os, signal, sys
import mlflow.pyfunc, mlflow.pyfunc.loaders.code_model, pandas, onnxruntime_genai
from steps import evaluate
from steps.evaluation import answers, journal, scores

deaths, asked = json.loads(sys.argv.pop(1)), open(sys.argv.pop(1), "a")
left = None
ask, add = answers._ask, journal.Journal.add

def counting(model, variant, batch):
    asked.write("x" * len(batch))
    asked.flush()
    return ask(model, variant, batch)

class DyingEntries(dict):
    def items(self):
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

def mortal(self, entries):
    global left
    left -= 1
    add(self, DyingEntries(entries) if left == 0 else entries)

answers._ask, journal.Journal.add, scores.load_metrics = counting, mortal, dict.fromkeys
for left in deaths:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    else:
        evaluate.main()
        os._exit(0)
"""
# Imports beside the first process, and evaluates when it is told to.
OTHER = """
import mlflow.pyfunc, mlflow.pyfunc.loaders.code_model, pandas, onnxruntime_genai
from steps import evaluate

input()
evaluate.main()
"""


@pytest.fixture
def typed(typed):
    return lambda name, *words: typed(name, *words, *(QUICK if name == "evaluate" else []))


class Store:
    """A store with three variants of the miniature, in which steps are typed."""

    def __init__(self, folder: Path, empty_store: Path, cache: Path):
        self.folder, self.cache = folder, cache
        shutil.copy(empty_store, folder / "mlflow.db")

    @contextlib.contextmanager
    def here(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder}/mlflow.db")
            patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
            patch.setenv("PHI3_CACHE_DIR", str(self.cache))
            patch.setenv("PYTHONPATH", str(PROJECT))
            patch.chdir(self.folder)
            yield self

    def variants(self) -> dict[str, Variant]:
        found = find_variants(mlflow.MlflowClient(), "0")
        return {variant.name: variant for variant in found}

    def file(self, variant: Variant, sha256: str) -> bytes:
        return Path(
            mlflow.artifacts.download_artifacts(f"runs:/{variant.run_id}/{scorecard.file(sha256)}")
        ).read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory, empty_store, caches, checkpoint):
    store = Store(tmp_path_factory.mktemp("evaluated"), empty_store, caches / "phi3")
    with store.here():
        for choice in (["interface=prompt", "prompting=brief"], [], ["generation=sampled", "generation.temperature=1"]):
            build.build(command_line.compose("build", ["mode=onnx", *choice]), checkpoint)
        yield store


@pytest.fixture
def store(built):
    with built.here():
        yield built


GREEDY, SAMPLED, PROMPT = "onnx-fp32-chat", "onnx-fp32-chat-t1", "onnx-fp32-prompt-brief"


def _file(folder, rows, name="mine.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompt_set.path={file}", prompt_set.load(PromptSet("mine", str(file))).sha256


def _row(identity, content="What is the capital of Spain?", target="Madrid", **fields):
    return {"id": identity, "prompt": content, "target": target} | fields


def _metrics(variant, sha256):
    return scorecard.scores(variant, sha256)


def test_killed_at_10_50_and_90_percent_it_ends_with_the_same_scorecard_bit_for_bit(
    store, tmp_path, typed, monkeypatch, record_property
):
    rows = prompt_set.load(PromptSet("facts", "conf/prompt_set/facts.jsonl"))
    words = [f"run_id={store.variants()[SAMPLED].run_id}", f"evaluate.batch_size={BATCH}", "evaluate.seed=3"]
    asked, batches, deaths = tmp_path / "asked", -(-len(rows.rows) // BATCH), []
    for share in (0.1, 0.5, 0.9):
        # A batch that one dies in is the first that the next one asks.
        deaths.append(round(batches * share) - sum(deaths) + len(deaths))
    command = [sys.executable, "-W", "ignore", "-c", MORTAL, json.dumps(deaths), str(asked), *words, *QUICK]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert [line for line in ended.stdout.splitlines() if line.startswith("-")] == ["-9"] * 3, ended.stderr
    last = _counted(monkeypatch)
    assert typed("evaluate", *words).returncode == 0
    redone = len(asked.read_text()) + sum(last) - len(rows.rows)
    assert 0 <= redone <= 3 * BATCH
    figure = f"rows redone after kills at 10, 50 and 90 %: {redone} of {len(rows.rows)}, in batches of {BATCH}"
    record_property("figure", figure)
    variant = store.variants()[SAMPLED]
    resumed = store.file(variant, rows.sha256)
    last.clear()
    assert typed("evaluate", *words).returncode == 0
    assert sum(last) == len(rows.rows)
    assert store.file(variant, rows.sha256) == resumed
    (table,) = [file.path for file in mlflow.MlflowClient().list_artifacts(variant.run_id) if "table" in file.path]
    assert len(mlflow.artifacts.load_dict(f"runs:/{variant.run_id}/{table}")["data"]) == len(rows.rows)


def test_a_rescoring_that_was_killed_half_way_is_no_scorecard(store, typed, tmp_path, monkeypatch):
    words, sha256 = _file(tmp_path, [_row("half")])
    only = f"run_id={store.variants()[GREEDY].run_id}"
    assert typed("evaluate", words).returncode == 0
    with monkeypatch.context() as patch:
        _die(patch, scorecard, "log")
        assert typed("evaluate", words, only).returncode == KILLED
    assert _metrics(store.variants()[GREEDY], sha256) is None
    assert f"Scored {GREEDY}" in typed("evaluate", words).stdout
    assert _metrics(store.variants()[GREEDY], sha256)["answer_match/mean"] == 1


@pytest.mark.parametrize("where", ["before the mark", "before the journal is removed"])
def test_killed_when_all_is_asked_it_asks_nothing_again(store, tmp_path, typed, monkeypatch, where):
    variant = store.variants()[GREEDY]
    words, sha256 = _file(tmp_path, [_row(where), _row("b", "What is the capital of France?", "Paris")])
    only = f"run_id={variant.run_id}"
    with monkeypatch.context() as patch:
        _die(
            patch,
            *{"before the mark": (scorecard, "mark"), "before the journal is removed": (Journal, "remove")}[where],
        )
        assert typed("evaluate", words, only).returncode == KILLED
    with monkeypatch.context() as patch:
        sizes = _counted(patch)
        assert typed("evaluate", words, only).returncode == 0
    assert sizes == []
    resumed = store.file(variant, sha256)
    assert typed("evaluate", words, only).returncode == 0
    assert store.file(variant, sha256) == resumed


def test_what_a_killed_process_left_of_a_variant_that_is_scored_is_forgotten(store, tmp_path, typed, monkeypatch):
    words, _ = _file(tmp_path, [_row("forgotten")])
    # The session's cache has journals of the other worker's tests too.
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    journals = tmp_path / "cache" / "journals"
    with monkeypatch.context() as patch:
        _die(patch, Journal, "remove")
        assert typed("evaluate", words).returncode == KILLED
    assert len(list(journals.glob("*.sqlite"))) == 1
    assert typed("evaluate", words).returncode == 0
    assert list(journals.glob("*.sqlite")) == []


def _die(patch, where, name):
    """Have a function end the process, as far as a test can be ended."""

    def die(*_, **__):
        sys.exit(KILLED)

    patch.setattr(where, name, die)


def _counted(monkeypatch, before=lambda: None):
    """The sizes of the batches that are asked from now on in this process."""
    ask, sizes = answers._ask, []

    def counting(model, variant, batch):
        before()
        sizes.append(len(batch))
        return ask(model, variant, batch)

    monkeypatch.setattr(answers, "_ask", counting)
    return sizes


def test_every_metric_has_its_interval_and_belongs_to_its_prompt_set(store, typed, tmp_path):
    rows = [_row("a", tags=["x"]), _row("b", "What is the capital of France?", "Paris", tags=["x", "y"]), _row("c")]
    words, sha256 = _file(tmp_path, [*rows, _row("d", target="nowhere")])
    other, other_sha256 = _file(tmp_path, rows, "other.jsonl")
    for path in (words, other):
        assert typed("evaluate", path, "prompt_set.name=mine").returncode == 0
    variant = store.variants()[GREEDY]
    card, found = scorecard.read(variant, sha256), _metrics(variant, sha256)
    assert found["answer_match/mean"] == card.metrics["answer_match/mean"] == 0.75
    assert found["answer_match/ci_low"] < 0.75 < found["answer_match/ci_high"]
    assert found["answers/errors"] == 0
    assert found["contract/passed"] == found["contract/total"]
    assert _metrics(variant, other_sha256)["answer_match/mean"] == 1
    assert {digest for key, digest, _ in variant.metrics if key.startswith(("answers/", "contract/"))} >= {
        sha256[:16],
        other_sha256[:16],
    }
    assert not [key for key, digest, _ in variant.metrics if key.startswith(("answers/", "contract/")) and not digest]
    assert set(card.by_tag) == {"x", "y"}
    assert (card.by_tag["x"]["rows"], card.by_tag["y"]["answer_match/mean"]) == (2, 1)
    assert len(scorecard.read_latencies(variant, sha256)) == len(scorecard.row_scores(variant, sha256)["chrf"]) == 4
    assert "already" in typed("evaluate", words).stdout


def test_a_sampled_variant_is_asked_several_times(store, typed, tmp_path):
    words, sha256 = _file(tmp_path, [_row(str(number), f"Tell me something of {number}.") for number in range(8)])
    assert typed("evaluate", words, "evaluate.repeats=3").returncode == 0
    card, greedy = (scorecard.read(store.variants()[name], sha256) for name in (SAMPLED, GREEDY))
    assert len(card.repeats) == 2
    assert card.answers not in card.repeats
    assert greedy.repeats == []


def test_several_turns_reach_the_prompt_interface_with_its_prompting(store, typed, tmp_path):
    """The brief variant answers with the bare word, after a conversation in full sentences too."""
    turns = [("user", "What is the capital of France?"), ("assistant", "The capital of France is Paris.")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("user", "What is the capital of Spain?")]]
    words, sha256 = _file(tmp_path, [{"id": "a", "messages": messages, "target": "Madrid"}])
    assert typed("evaluate", words, f"run_id={store.variants()[PROMPT].run_id}").returncode == 0
    card = scorecard.read(store.variants()[PROMPT], sha256)
    assert card.errors == [None]
    assert len(card.answers[0].split()) == 1


def test_rows_that_no_variant_can_be_asked_are_told_before_a_model_is_loaded(store, typed, tmp_path, monkeypatch):
    monkeypatch.setattr("steps.evaluation.answers.loaded", None)
    words, _ = _file(tmp_path, [_row("good"), _row("marked", "a<|end|>b"), _row("long", "word " * 2000)])
    done = typed("evaluate", words, "prompt_set.name=mine")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "error: mine: line 2 (id 'marked'): messages[0].content holds the control token <|end|>."
    assert all("line 3 (id 'long'): its prompt has 2" in line and line.endswith("512.") for line in lines[1:])
    assert len(lines) == 1 + len(store.variants())


def test_a_model_that_lost_its_files_does_not_keep_the_others_from_it(store, typed, tmp_path, monkeypatch):
    tokenizer_of = fit.tokenizer_of

    def lost(variant):
        if variant.name == GREEDY:
            raise FileNotFoundError("tokenizer.json")
        return tokenizer_of(variant)

    monkeypatch.setattr(fit, "tokenizer_of", lost)
    words, _ = _file(tmp_path, [_row("lost")])
    done = typed("evaluate", words)
    assert done.returncode == 1
    assert done.stdout.count("Scored ") == len(store.variants()) - 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {GREEDY} (models:/")
    assert line.endswith("could not be scored: FileNotFoundError: tokenizer.json")
    (run,) = mlflow.search_runs(
        filter_string="attributes.run_name = 'evaluate-mine'",
        order_by=["start_time DESC"],
        max_results=1,
        output_format="list",
    )
    assert run.info.status == "FAILED"
    assert "leaderboard.json" in {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def test_rows_over_the_context_are_skipped_where_the_configuration_says_so(store, typed, tmp_path):
    words, sha256 = _file(tmp_path, [_row("long", "word " * 2000), _row("good")])
    done = typed("evaluate", words, "prompt_set.over_context=skip", f"run_id={store.variants()[GREEDY].run_id}")
    assert done.returncode == 0
    assert "1 rows skipped ('long'): its prompt has 2" in done.stdout
    variant = store.variants()[GREEDY]
    card = scorecard.read(variant, sha256)
    assert _metrics(variant, sha256)["answers/truncated"] == 0
    assert (card.answers[0], card.scores["answer_match"]) == (None, [None, 1.0])
    # A skipped row counts as 0, as in a promotion.
    assert (card.metrics["answer_match/mean"], _metrics(variant, sha256)["answers/skipped"]) == (0.5, 1)


def test_rows_with_an_error_are_counted_and_end_with_3(store, typed, tmp_path, monkeypatch):
    ask = answers._ask

    def failing(model, variant, batch):
        if any("Peru" in question.prompt for question in batch):
            raise RuntimeError("out of memory")
        return ask(model, variant, batch)

    monkeypatch.setattr(answers, "_ask", failing)
    words, sha256 = _file(tmp_path, [_row("a"), _row("b", "And of Peru?", "Lima")])
    run_id = f"run_id={store.variants()[GREEDY].run_id}"
    done = typed("evaluate", words, run_id, "evaluate.max_errors=0")
    assert done.returncode == 1
    assert "1 rows failed, more than evaluate.max_errors=0: row 'b': RuntimeError: out of memory" in done.stderr
    done = typed("evaluate", words, run_id)
    assert done.returncode == 3
    assert "is scored, but 1 rows have an error: row 'b': RuntimeError: out of memory" in done.stderr
    card = scorecard.read(store.variants()[GREEDY], sha256)
    assert (card.errors, card.scores["answer_match"]) == ([None, "RuntimeError: out of memory"], [1.0, 0.0])
    assert mlflow.get_run(store.variants()[GREEDY].run_id).info.status == "FINISHED"
    # Of the variants that are scored already too, and where nothing is left to do.
    for said in ("Scored", "Every variant has a scorecard"):
        done = typed("evaluate", words)
        assert said in done.stdout
        assert (done.returncode, done.stderr.count("rows have an error")) == (3, len(store.variants()))


def test_the_form_of_an_answer_is_checked_by_rules(store, typed, tmp_path):
    rows = [_row("a", rules=["sentence", "max_words=7"]), _row("b", rules=["json"])]
    words, sha256 = _file(tmp_path, rows)
    done = typed("evaluate", "prompt_set=instructions", words, f"run_id={store.variants()[GREEDY].run_id}")
    assert done.returncode == 0
    assert "instruction_match 0.500" in done.stdout
    assert scorecard.row_scores(store.variants()[GREEDY], sha256)["instruction_match"] == [1, 0]
    assert typed("evaluate", "prompt_set=instructions", words).returncode == 0
    (run,) = mlflow.search_runs(
        filter_string="attributes.run_name = 'evaluate-mine'",
        order_by=["start_time DESC"],
        max_results=1,
        output_format="list",
    )
    pairs = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/pairwise.json")
    assert {row[pairs["columns"].index("metric")] for row in pairs["data"]} == {"instruction_match"}
    words, _ = _file(tmp_path, [_row("a", rules=["json"]), _row("b")])
    done = typed("evaluate", "prompt_set=instructions", words, f"run_id={store.variants()[GREEDY].run_id}")
    assert done.returncode == 1
    assert done.stderr == "error: mine: line 2 (id 'b'): the metric instruction_match needs rules.\n"


class _Judge(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint; what it says of an answer is in `said`."""

    said = '{"result": 0.5, "rationale": "half of it"}'
    asked: ClassVar[list] = []
    broken = None  # an answer with this word gets no judgement

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        said = "no judgement" if self.broken and self.broken in json.dumps(body) else self.said
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage}
        content = json.dumps(reply | {"choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing to the output of the tests."""


@pytest.fixture
def judge(monkeypatch):
    """The words that turn the judge on, and the class that answers for it."""
    handler = type("Judge", (_Judge,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    address = f"evaluate.judge.address=http://127.0.0.1:{server.server_port}/v1"
    yield ["evaluate.judge.model=org/judge-1", address], handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_behind_an_openai_compatible_address_scores_the_answers(store, typed, tmp_path, judge):
    switch, handler = judge
    words, sha256 = _file(tmp_path, [_row("a"), _row("b", "What is the capital of France?", ["Paris", "paris"])])
    run_id = f"run_id={store.variants()[GREEDY].run_id}"
    handler.said = "no judgement"
    done = typed("evaluate", words, run_id, *switch)
    assert done.returncode == 1
    assert "The judge could not score row 'a'" in done.stderr
    handler.said, handler.broken = _Judge.said, "France"
    done = typed("evaluate", words, run_id, *switch)
    assert done.stderr.count("The judge could not score") == 1
    handler.broken, handler.asked[:] = None, []
    handler.said = '{"result": 7, "rationale": "too good"}'
    assert "must give row 'b' a number from 0 to 1, got 7" in typed("evaluate", words, run_id, *switch).stderr
    # What was paid for is not asked again, whatever became of its neighbour.
    assert not any("Spain" in json.dumps(body) for _, body in handler.asked)
    handler.said, handler.asked[:] = _Judge.said, []
    assert typed("evaluate", words, run_id, *switch).returncode == 0
    assert len(handler.asked) == 1
    assert {path for path, _ in handler.asked} == {"/v1/chat/completions"}
    assert {body["model"] for _, body in handler.asked} == {"org/judge-1"}
    assert all("Score how well the answer agrees" in json.dumps(body) for _, body in handler.asked)
    assert any("The capital of France" in json.dumps(body) and "paris" in json.dumps(body) for _, body in handler.asked)
    found = _metrics(store.variants()[GREEDY], sha256)
    assert found["judge/ci_low"] < found["judge/mean"] == 0.5
    assert os.environ.get("OPENAI_API_KEY") is None


def test_two_processes_at_once_ask_a_row_once(store, typed, tmp_path, monkeypatch):
    """This one holds a variant's rows until the other says that it waits for them."""
    words, sha256 = _file(tmp_path, [_row(str(number), f"Question {number}?") for number in range(ROWS)])
    command, called = [sys.executable, "-W", "ignore", "-c", OTHER, words, *QUICK], []
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def let_the_other_come():
            if not called:
                called.append(other.stdin.write("\n") and other.stdin.flush())
                assert other.stdout.readline().endswith("these rows: waiting for it.\n")

        sizes = _counted(monkeypatch, let_the_other_come)
        assert typed("evaluate", words).returncode == 0
        said, _ = other.communicate(timeout=300)
    assert other.returncode == 0
    assert sum(sizes) == ROWS * (len(store.variants()) - said.count("Scored "))
    assert all(len(scorecard.read(variant, sha256).answers) == ROWS for variant in store.variants().values())


def test_the_plan_is_shown_and_nothing_is_done(store, typed):
    before = len(mlflow.search_runs(output_format="list"))
    done = typed("evaluate", "prompt_set=chat", "evaluate.repeats=2", "--cfg", "job")
    assert done.returncode == 0
    assert "path: conf/prompt_set/chat.jsonl" in done.stdout
    assert "repeats: 2" in done.stdout
    assert len(mlflow.search_runs(output_format="list")) == before
