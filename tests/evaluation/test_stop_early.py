"""`evaluate.stop_early=true`: a variant that can no longer win is asked no more, and is finished with one command."""

import json
import shlex
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.utils.file_utils import local_file_uri_to_path

from steps import command_line, register
from steps.config.schema import Evaluation, Promotion
from steps.evaluation import answers, partial, prompt_set, scorecard
from steps.evaluation.answers import Answer, Course
from steps.evaluation.betting import is_beaten, money
from steps.evaluation.context_check import ContextCheck
from steps.promotion.candidate import Candidate
from steps.promotion.early_stopping import Field
from steps.store import names
from tests.conftest import PROJECT
from tests.support import make_prompt_set, make_variant, write_prompt_set

ROWS = 60
# Asked for a whole word, the variants without `prompting=brief` fail: they answer in sentences.
POLICY = ["promotion.metric=exact_match", "evaluate.metrics=[exact_match,answer_match]"]
EARLY = ["evaluate.stop_early=true", "evaluate.batch_size=8", "evaluate.repeats=2", *POLICY]


@pytest.fixture
def rows(tmp_path):
    """The override that chooses sixty of the facts, and the digest of their prompt set."""
    lines = (PROJECT / "conf/prompt_set/facts.jsonl").read_text().splitlines()[:ROWS]
    return write_prompt_set(tmp_path / "mine.jsonl", [json.loads(line) for line in lines])


@pytest.fixture
def asked(monkeypatch):
    """The indices of the rows that are asked, in order."""
    indices, answer_batch = [], answers._answer_batch

    def count(asker, batch):
        indices.extend(row.index for row in batch)
        return answer_batch(asker, batch)

    monkeypatch.setattr(answers, "_answer_batch", count)
    return indices


def mark_of(variant, sha256):
    return json.loads(variant.tags[names.of_prompt_set(names.PARTIAL, sha256)])


@pytest.mark.slow
def test_a_stopped_variant_is_not_compared_and_is_finished_from_its_kept_answers(store, evaluate, rows, asked):
    override, sha256 = rows
    done = evaluate(override, *EARLY)
    assert done.returncode == 0, done.stderr
    assert scorecard.metrics_of(store.prompt, sha256) is not None
    marks = {variant.name: mark_of(variant, sha256) for variant in (store.greedy, store.sampled)}
    for variant in (store.greedy, store.sampled):
        mark = marks[variant.name]
        assert 8 <= mark["asked"] < ROWS == mark["rows"]
        assert scorecard.metrics_of(variant, sha256) is None
        assert f"Stopped early: {variant.name} ({variant.uri}): {mark['asked']} of 60 rows were asked" in done.stdout
        page = mlflow.artifacts.load_text(f"runs:/{variant.run_id}/scorecards/{sha256[:16]}.md")
        assert f"Stopped early on mine: {mark['asked']} of 60 rows were asked. The others have no score." in page
        run = mlflow.MlflowClient().get_run(variant.run_id)
        assert json.loads(run.data.tags[names.of_prompt_set(names.PARTIAL, sha256)]) == mark
        assert "exact_match/mean" not in {key for key, digest, _ in variant.metrics if digest == sha256[:16]}
    run_id = store.latest_evaluation().info.run_id
    assert len(mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="stopped_early")) == 2

    # It cannot be promoted, and the report names it with the command that asks the rest.
    promoting = ["promotion.smoke=false", "promotion.metric=exact_match", "registered_model=early", override]
    outcome = register.register(command_line.compose("register", promoting))
    assert [candidate.model_id for candidate in outcome.ranking.ranked] == [store.prompt.model_id]
    run = mlflow.search_runs(filter_string="attributes.run_name = 'register-early'", output_format="list")[0]
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/promotion.md")
    extent = f"{marks[store.greedy.name]['asked']} of 60 rows were asked"
    assert f"{store.greedy.name} was stopped early: {extent}, so it is not compared. Ask the rest: `python -m" in text

    # Stopped, it stays so until it is asked in full.
    asked.clear()
    again = evaluate(override, *EARLY)
    assert asked == []
    assert again.stdout.count("Stopped early: ") == 2

    command = next(line for line in done.stdout.splitlines() if f"Stopped early: {store.greedy.name} " in line)
    words = shlex.split(command.partition("`")[2].partition("`")[0])
    assert words[:3] == ["python", "-m", "steps.evaluate"]
    finished = evaluate(*words[3:], POLICY[1])
    assert finished.returncode == 0, finished.stderr
    assert len(asked) == ROWS - marks[store.greedy.name]["asked"]
    assert mark_of(store.greedy, sha256) == {}
    card = scorecard.read(store.greedy, sha256)
    assert len([answer for answer in card.answers if answer]) == ROWS

    # The same answers as without early stopping.
    plain = evaluate(override, f"run_id={store.greedy.run_id}", POLICY[1])
    assert plain.returncode == 0, plain.stderr
    assert scorecard.read(store.greedy, sha256).answers == card.answers


@pytest.mark.slow
def test_lost_answers_are_asked_again(store, evaluate, rows, asked, tmp_path):
    path = Path(rows[0].partition("=")[2])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    override, sha256 = write_prompt_set(tmp_path / "mine.jsonl", lines[:-1])
    assert evaluate(override, *EARLY).returncode == 0
    folder = local_file_uri_to_path(mlflow.get_run(store.greedy.run_id).info.artifact_uri)
    Path(folder, partial.file(sha256)).unlink()
    asked.clear()
    assert evaluate(override, f"run_id={store.greedy.run_id}", POLICY[1]).returncode == 0
    assert sorted(asked) == list(range(ROWS - 1))
    assert scorecard.metrics_of(store.greedy, sha256) is not None


def test_a_metric_that_is_not_computed_cannot_stop_a_variant(store, evaluate, rows):
    done = evaluate(rows[0], "evaluate.stop_early=true", "promotion.metric=bleu")
    assert done.returncode == 1
    assert done.stderr == (
        "error: evaluate.stop_early compares variants by promotion.metric, which must be one of evaluate.metrics "
        "(answer_match, exact_match, token_f1, rouge_l, chrf), got 'bleu'.\n"
    )


def _field(scores, direction="higher", rival=1.0, others=1):
    rows = make_prompt_set(*map(str, range(40)))
    candidate = Candidate("rival", "m-rival", "f", {}, {"exact_match": [rival] * 40})
    policy = Promotion(metric="exact_match", direction=direction)
    answers_of_rows = [Answer("t" if score else "x") for score in scores]
    field = Field(rows, [candidate], others, policy, "exact_match")
    return field.is_beaten(list(range(len(scores))), [answers_of_rows])


FIELDS = {
    "all wrong": ({"scores": [0] * 40}, True),
    "after a few rows": ({"scores": [0] * 12}, True),
    "too few rows": ({"scores": [0] * 3}, False),
    "as good": ({"scores": [1] * 40}, False),
    "less is better, and ours is less": ({"scores": [0] * 40, "direction": "lower"}, False),
    "less is better, and ours is more": ({"scores": [1] * 40, "direction": "lower", "rival": 0.0}, True),
    "among many others": ({"scores": [0] * 6, "others": 30}, False),
    "scores without bounds": ({"scores": [0] * 40, "rival": 7.0}, False),
}


@pytest.mark.parametrize(("arguments", "beaten"), FIELDS.values(), ids=FIELDS)
def test_a_variant_is_beaten_if_it_is_shown_to_be_worse_by_the_margin(arguments, beaten):
    assert _field(**arguments) is beaten


def test_nobody_is_beaten_without_a_rival():
    assert not Field(make_prompt_set("a"), [], 3, Promotion(metric="exact_match"), "exact_match").is_beaten(
        [0], [[Answer("x")]]
    )
    assert not is_beaten([], 0.05, 0.05, 1)


@pytest.mark.parametrize("worse", [0.0, 0.05])
def test_one_within_the_margin_is_stopped_in_alpha_of_the_races_at_most(worse):
    """However often one looks: after each row."""
    draw = np.random.default_rng(1)
    ours, theirs = draw.random((4000, 300)) < 0.6 - worse, draw.random((4000, 300)) < 0.6
    most = money(ours.astype(float) - theirs, 0.05, every=True).max(-1)
    assert (most >= 1 / 0.05).mean() <= 0.05


def test_the_order_is_seeded_and_every_row_is_asked_once(rows):
    loaded = prompt_set.load(command_line.compose("evaluate", [rows[0]]).prompt_set)

    def order(seed):
        course = Course(seed, 8)
        batches = answers._batches(make_variant(), loaded, ContextCheck(), Evaluation(), course)
        return [row.index for batch in batches for row in batch]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(ROWS))
