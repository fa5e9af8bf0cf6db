"""A policy file of the user's own, for a metric where less is better, through `python -m steps.register`."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.conftest import PROJECT
from tests.promotion.store import card_of, write_card
from tests.promotion.test_register import store  # noqa: F401  a fixture

POLICY = """\
# For a chat on a small screen: the fewest words, if enough answers are right.
# Half of the answers must be right.
# A smaller variant may use more words, if it is shown to be by less than the margin.
name: terse
metric: wordiness
direction: lower
margin: 0.1
limits: {answer_match: {min: 0.5}}
prefer: [bytes]
alpha: 0.05
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the project with one more policy."""
    for name in ("conf", "steps"):
        shutil.copytree(PROJECT / name, tmp_path / "mine" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine/conf/promotion/terse.yaml").write_text(POLICY)
    return tmp_path / "mine"


def write_words(variant, rows, words, right):
    """Write a scorecard with this wordiness of every row, and this share of right answers."""
    count = len(rows.rows)
    answers = [1.0] * round(count * right) + [0.0] * (count - round(count * right))
    card = card_of(rows, answers, ["yes"] * count)
    # The rows differ a little, as words do.
    scores = [words + 0.01 * (index % 3) for index in range(count)]
    metrics = card.metrics | {"wordiness/mean": sum(scores) / count}
    write_card(variant, rows, replace(card, scores=card.scores | {"wordiness": scores}, metrics=metrics))


@pytest.mark.slow
def test_a_policy_file_where_less_is_better(store, project):  # noqa: F811
    def register():
        command = [sys.executable, "-m", "steps.register", "promotion=terse", *store.overrides]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)

    rows = store.rows
    long, silent, short = store.variants[:3]
    write_words(long, rows, 0.8, 0.9)
    write_words(silent, rows, 0.0, 0.2)
    done = register()
    assert done.returncode == 0, done.stderr
    assert "there was no champion; onnx-int4-chat-max12 has the lowest score, wordiness 0.80" in done.stdout
    _, content, text = store.report()
    assert store.registry.champion.model_id == long.model_id
    assert "answer_match 0.203125 is below 0.5" in text
    assert content["policy"]["direction"] == "lower"
    assert "Policy terse: wordiness (less is better) with margin 0.1" in text

    write_words(short, rows, 0.3, 0.6)
    done = register()
    assert done.returncode == 0, done.stderr
    assert "is superior to the champion onnx-int4-chat-max12: wordiness -0.5000, interval -0." in done.stdout
    assert store.registry.champion.model_id == short.model_id
    assert store.client.get_model_version("phi3", store.registry.champion.number).tags["phi3.verdict"] == "superior"

    # More words are no reason to go back.
    assert "Nothing changes: the champion onnx-int4-chat-max14 is already the best: wordiness 0.3" in register().stdout


def test_every_shipped_policy_says_in_three_lines_for_whom_it_is():
    for file in sorted((PROJECT / "conf/promotion").glob("*.yaml")):
        comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
        assert len(comments) == 3, file.name
        assert comments[0].startswith("# For "), file.name
