"""Evaluations that are killed, and two at the same time: rows are asked once, and the scorecard is the same."""

import json
import subprocess
import sys

import mlflow
import pytest

from steps.config.schema import PromptSet
from steps.evaluation import prompt_set, scorecard
from steps.evaluation.asking import Asker
from steps.evaluation.journal import Journal
from tests.conftest import PROJECT
from tests.support import KILLED, die_in, make_row, write_prompt_set

BATCH, ROWS = 8, 12


def _command(*words):
    return [sys.executable, "-W", "ignore", "-m", "tests.evaluation.processes", *words, "evaluate.speed=false"]


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that this process asks, as a list that grows."""
    return _count_batches(monkeypatch)


def _count_batches(patch, before=lambda: None):
    ask, sizes = Asker.ask, []

    def counting(self, questions):
        before()
        sizes.append(len(questions))
        return ask(self, questions)

    patch.setattr(Asker, "ask", counting)
    return sizes


@pytest.mark.slow
def test_killed_at_10_50_and_90_percent_it_ends_with_the_same_scorecard_byte_for_byte(
    store, tmp_path, evaluate, batches, record_property
):
    rows = prompt_set.load(PromptSet("facts", "conf/prompt_set/facts.jsonl"))
    words = [f"run_id={store.sampled.run_id}", f"evaluate.batch_size={BATCH}", "evaluate.seed=3"]
    asked, total, deaths = tmp_path / "asked", -(-len(rows.rows) // BATCH), []
    for share in (0.1, 0.5, 0.9):
        # The batch in which one evaluation dies is the first that the next one asks.
        deaths.append(round(total * share) - sum(deaths) + len(deaths))
    command = _command("kill", json.dumps(deaths), str(asked), *words)
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert [line for line in done.stdout.splitlines() if line.startswith("-")] == ["-9"] * 3, done.stderr
    assert evaluate(*words).returncode == 0
    redone = len(asked.read_text()) + sum(batches) - len(rows.rows)
    assert 0 <= redone <= 3 * BATCH
    figure = f"rows redone after kills at 10, 50 and 90 %: {redone} of {len(rows.rows)}, in batches of {BATCH}"
    record_property("figure", figure)
    variant = store.sampled
    resumed = store.scorecard_bytes(variant, rows.sha256)
    batches.clear()
    assert evaluate(*words).returncode == 0
    assert sum(batches) == len(rows.rows)
    assert store.scorecard_bytes(variant, rows.sha256) == resumed
    (table,) = [file.path for file in mlflow.MlflowClient().list_artifacts(variant.run_id) if "table" in file.path]
    assert len(mlflow.artifacts.load_dict(f"runs:/{variant.run_id}/{table}")["data"]) == len(rows.rows)


@pytest.mark.slow
def test_half_a_rescoring_is_not_a_scorecard(store, evaluate, tmp_path, monkeypatch):
    words, sha256 = write_prompt_set(tmp_path / "mine.jsonl", [make_row("half")])
    assert evaluate(words).returncode == 0
    with monkeypatch.context() as patch:
        die_in(patch, scorecard, "log")
        assert evaluate(words, f"run_id={store.greedy.run_id}").returncode == KILLED
    assert scorecard.metrics_of(store.greedy, sha256) is None
    assert f"Scored {store.greedy.name}" in evaluate(words).stdout
    assert scorecard.metrics_of(store.greedy, sha256)["answer_match/mean"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "function"),
    [(scorecard, "mark"), (Journal, "remove")],
    ids=["before the mark", "before the journal is removed"],
)
def test_killed_when_all_rows_are_asked_it_asks_none_again(
    store, tmp_path, evaluate, monkeypatch, batches, owner, function
):
    rows = [make_row(function), make_row("b", "What is the capital of France?", "Paris")]
    words, sha256 = write_prompt_set(tmp_path / "mine.jsonl", rows)
    only = f"run_id={store.greedy.run_id}"
    with monkeypatch.context() as patch:
        die_in(patch, owner, function)
        assert evaluate(words, only).returncode == KILLED
    assert sum(batches) == 2
    batches.clear()
    assert evaluate(words, only).returncode == 0
    assert batches == []
    resumed = store.scorecard_bytes(store.greedy, sha256)
    assert evaluate(words, only).returncode == 0
    assert sum(batches) == 2
    assert store.scorecard_bytes(store.greedy, sha256) == resumed


@pytest.mark.slow
def test_the_journal_that_a_killed_evaluation_left_of_a_scored_variant_is_removed(
    store, tmp_path, evaluate, monkeypatch
):
    words, _ = write_prompt_set(tmp_path / "mine.jsonl", [make_row("forgotten")])
    # The session's cache also has the journals of the other worker's tests.
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        die_in(patch, Journal, "remove")
        assert evaluate(words).returncode == KILLED
    assert len(list((tmp_path / "cache" / "journals").glob("*.sqlite"))) == 1
    assert evaluate(words).returncode == 0
    assert list((tmp_path / "cache" / "journals").glob("*.sqlite")) == []


@pytest.mark.slow
def test_two_processes_at_once_ask_a_row_once(store, evaluate, tmp_path, monkeypatch):
    """This process holds a variant's rows until the other one says that it waits for them."""
    rows = [make_row(str(number), f"Question {number}?") for number in range(ROWS)]
    words, sha256 = write_prompt_set(tmp_path / "mine.jsonl", rows)
    command, waiting = _command("wait", words), []
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def let_the_other_come():
            if not waiting:
                other.stdin.write("\n")
                other.stdin.flush()
                while not (waiting and waiting[-1].startswith("Waiting")):
                    waiting.append(other.stdout.readline())
                    assert waiting[-1], "the other one has ended"

        sizes = _count_batches(monkeypatch, let_the_other_come)
        assert evaluate(words).returncode == 0
        output, _ = other.communicate(timeout=300)
    assert waiting[-1].startswith("Waiting for another process that is asking ")
    assert other.returncode == 0
    assert sum(sizes) == ROWS * (len(store.variants) - output.count("Scored "))
    assert all(len(scorecard.read(variant, sha256).answers) == ROWS for variant in store.variants.values())
