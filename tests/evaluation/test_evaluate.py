"""`evaluate` on real variants in their own store: scores, errors, and what it refuses."""

import mlflow
import pytest

from steps.evaluation import context_check, scorecard, scoring
from steps.evaluation.asking import Asker
from tests.support import make_row, write_prompt_set

FRANCE = ("What is the capital of France?", "Paris")


@pytest.fixture
def write(tmp_path):
    """Write rows as a prompt set: `write(rows)` → the override that chooses it, and its sha256."""
    return lambda rows, name="mine.jsonl": write_prompt_set(tmp_path / name, rows)


def test_every_metric_has_its_interval_and_belongs_to_its_prompt_set(store, evaluate, write):
    rows = [make_row("a", tags=["x"]), make_row("b", *FRANCE, tags=["x", "y"]), make_row("c")]
    words, sha256 = write([*rows, make_row("d", target="nowhere")])
    other, other_sha256 = write(rows, "other.jsonl")
    for path in (words, other):
        assert evaluate(path, "prompt_set.name=mine").returncode == 0
    variant = store.greedy
    card, metrics = scorecard.read(variant, sha256), scorecard.metrics_of(variant, sha256)
    assert metrics["answer_match/mean"] == card.metrics["answer_match/mean"] == 0.75
    assert metrics["answer_match/ci_low"] < 0.75 < metrics["answer_match/ci_high"]
    assert metrics["answers/errors"] == 0
    assert metrics["contract/passed"] == metrics["contract/total"]
    assert scorecard.metrics_of(variant, other_sha256)["answer_match/mean"] == 1
    digests = {digest for key, digest, _ in variant.metrics if key.startswith(("answers/", "contract/"))}
    assert digests >= {sha256[:16], other_sha256[:16]}
    assert None not in digests
    assert set(card.by_tag) == {"x", "y"}
    assert (card.by_tag["x"]["rows"], card.by_tag["y"]["answer_match/mean"]) == (2, 1)
    assert len(scorecard.read_latencies(variant, sha256)) == len(card.scores["chrf"]) == 4
    assert "already" in evaluate(words).stdout


def test_the_beginning_that_rows_share_is_computed_once_and_counted(store, evaluate, write):
    beginning = "Spain and France are countries, and each has a capital. " * 5
    words, sha256 = write(
        [make_row(name, beginning + name) for name in ("Spain?", "France?", "Rome?", "Italy?", "Japan?")]
    )
    assert evaluate(words, f"run_id={store.greedy.run_id}").returncode == 0
    metrics = scorecard.metrics_of(store.greedy, sha256)
    # The second row computes what it shares with the first one, and the other three find it.
    assert 0.4 < metrics["answers/reused_prompt_tokens"] / metrics["answers/prompt_tokens"] < 0.6


def test_a_sampled_variant_is_asked_several_times(store, evaluate, write):
    words, sha256 = write([make_row(str(number), f"Tell me something of {number}.") for number in range(8)])
    assert evaluate(words, "evaluate.repeats=3").returncode == 0
    card = scorecard.read(store.sampled, sha256)
    assert len(card.repeats) == 2
    assert card.answers not in card.repeats
    assert scorecard.read(store.greedy, sha256).repeats == []


def test_several_turns_reach_the_prompt_interface_with_its_prompting(store, evaluate, write):
    """The brief variant answers with the bare word, even after a conversation in full sentences."""
    turns = [("user", FRANCE[0]), ("assistant", "The capital of France is Paris.")]
    turns.append(("user", "What is the capital of Spain?"))
    messages = [{"role": role, "content": text} for role, text in turns]
    words, sha256 = write([{"id": "a", "messages": messages, "target": "Madrid"}])
    assert evaluate(words, f"run_id={store.prompt.run_id}").returncode == 0
    card = scorecard.read(store.prompt, sha256)
    assert card.errors == [None]
    assert len(card.answers[0].split()) == 1


def test_rows_that_no_variant_can_be_asked_are_reported_before_a_model_is_loaded(store, evaluate, write, monkeypatch):
    monkeypatch.setattr(scoring, "loaded", None)
    words, _ = write([make_row("good"), make_row("marked", "a<|end|>b"), make_row("long", "word " * 2000)])
    done = evaluate(words, "prompt_set.name=mine")
    assert done.returncode == 1
    first, *others = done.stderr.splitlines()
    assert first == "error: mine: line 2 (id 'marked'): messages[0].content holds the control token <|end|>."
    assert all("line 3 (id 'long'): its prompt has 2" in line and line.endswith("512.") for line in others)
    assert len(others) == len(store.variants)


def test_a_model_that_lost_its_files_does_not_stop_the_others(store, evaluate, write, monkeypatch):
    tokenizer_of, lost = context_check.tokenizer_of, store.greedy.name

    def failing(variant):
        if variant.name == lost:
            raise FileNotFoundError("tokenizer.json")
        return tokenizer_of(variant)

    monkeypatch.setattr(context_check, "tokenizer_of", failing)
    done = evaluate(write([make_row("lost")])[0])
    assert done.returncode == 1
    assert done.stdout.count("Scored ") == len(store.variants) - 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {lost} (models:/")
    assert line.endswith("could not be scored: FileNotFoundError: tokenizer.json")
    run = store.latest_evaluation()
    assert run.info.status == "FAILED"
    assert "leaderboard.json" in {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def test_rows_beyond_the_context_are_skipped_if_the_configuration_says_so(store, evaluate, write):
    words, sha256 = write([make_row("long", "word " * 2000), make_row("good")])
    done = evaluate(words, "prompt_set.over_context=skip", f"run_id={store.greedy.run_id}")
    assert done.returncode == 0
    assert "1 rows skipped ('long'): its prompt has 2" in done.stdout
    card, metrics = scorecard.read(store.greedy, sha256), scorecard.metrics_of(store.greedy, sha256)
    assert metrics["answers/truncated"] == 0
    assert (card.answers[0], card.scores["answer_match"]) == (None, [None, 1.0])
    # A skipped row counts as 0, as in a promotion.
    assert (card.metrics["answer_match/mean"], metrics["answers/skipped"]) == (0.5, 1)


def test_rows_with_an_error_are_counted_and_the_exit_code_is_3(store, evaluate, write, monkeypatch):
    ask = Asker.ask

    def failing(self, questions):
        if any("Peru" in question.prompt for question in questions):
            raise RuntimeError("out of memory")
        return ask(self, questions)

    monkeypatch.setattr(Asker, "ask", failing)
    words, sha256 = write([make_row("a"), make_row("b", "And of Peru?", "Lima")])
    run_id = f"run_id={store.greedy.run_id}"
    done = evaluate(words, run_id, "evaluate.max_errors=0")
    assert done.returncode == 1
    assert "1 rows failed, more than evaluate.max_errors=0: row 'b': RuntimeError: out of memory" in done.stderr
    done = evaluate(words, run_id)
    assert done.returncode == 3
    assert "is scored, but 1 rows have an error: row 'b': RuntimeError: out of memory" in done.stderr
    card = scorecard.read(store.greedy, sha256)
    assert (card.errors, card.scores["answer_match"]) == ([None, "RuntimeError: out of memory"], [1.0, 0.0])
    assert mlflow.get_run(store.greedy.run_id).info.status == "FINISHED"
    # The errors of variants that are scored already count too, even if nothing is left to do.
    for expected in ("Scored", "All variants are already scored"):
        done = evaluate(words)
        assert expected in done.stdout
        assert (done.returncode, done.stderr.count("rows have an error")) == (3, len(store.variants))


@pytest.mark.slow
def test_the_form_of_an_answer_is_checked_by_rules(store, evaluate, write):
    words, sha256 = write([make_row("a", rules=["sentence", "max_words=7"]), make_row("b", rules=["json"])])
    done = evaluate("prompt_set=instructions", words, f"run_id={store.greedy.run_id}")
    assert done.returncode == 0
    assert "instruction_match 0.500" in done.stdout
    assert scorecard.read(store.greedy, sha256).scores["instruction_match"] == [1, 0]
    assert evaluate("prompt_set=instructions", words).returncode == 0
    run_id = store.latest_evaluation().info.run_id
    pairs = mlflow.artifacts.load_dict(f"runs:/{run_id}/pairwise.json")
    assert {row[pairs["columns"].index("metric")] for row in pairs["data"]} == {"instruction_match"}
    words, _ = write([make_row("a", rules=["json"]), make_row("b")])
    done = evaluate("prompt_set=instructions", words, f"run_id={store.greedy.run_id}")
    assert done.returncode == 1
    assert done.stderr == "error: mine: line 2 (id 'b'): the metric instruction_match needs rules.\n"


def test_the_plan_is_shown_and_nothing_is_done(store, evaluate):
    before = len(mlflow.search_runs(output_format="list"))
    done = evaluate("prompt_set=chat", "evaluate.repeats=2", "--cfg", "job")
    assert done.returncode == 0
    assert "path: conf/prompt_set/chat.jsonl" in done.stdout
    assert "repeats: 2" in done.stdout
    assert len(mlflow.search_runs(output_format="list")) == before
