"""A changed ruler is noticed, and the kept answers are scored again without asking a model."""

import json
import shlex
import shutil
import sys
from dataclasses import replace
from importlib import metadata

import mlflow
import pytest

from steps import command_line
from steps.errors import StepError
from steps.evaluation import contract_suite, metric_loading, ruler, scorecard, scoring, source_digest
from steps.register import register
from steps.store.names import SCORECARD
from tests.evaluation.test_judge import judge  # noqa: F401  a fixture
from tests.support import KILLED, die_in, make_row, write_prompt_set

# `evaluate` copies only the helpers that the metric itself imports.
METRIC = """
\"""Mine.\"""
from .row_metric import row_metric
from .own import value
from .deeper import RESULT


def score(prediction, accepted):
    return value(prediction)


Mine = row_metric(__name__, __doc__, score)
"""
HELPER = "from .deeper import RESULT\n\n\ndef value(text):\n    return RESULT\n"


@pytest.fixture
def metrics(monkeypatch, tmp_path):
    """A copy of the folder of metrics, with one more that has helpers of its own."""
    folder = tmp_path / "metrics"
    shutil.copytree(metric_loading.METRICS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mine.py").write_text(METRIC)
    (folder / "own.py").write_text(HELPER)
    (folder / "deeper.py").write_text("RESULT = 0.25\n")
    monkeypatch.setattr(metric_loading, "METRICS", folder)
    return folder


def digests(*overrides):
    return ruler.make(command_line.compose("evaluate", list(overrides))).digests


EDITS = {
    "the metric": ("mine.py", METRIC.replace("return value", "return 1 - value")),
    "its helper": ("own.py", HELPER.replace("return RESULT", "return 1 - RESULT")),
    "a helper's helper": ("deeper.py", "RESULT = 0.75\n"),
}


@pytest.mark.parametrize(("name", "content"), EDITS.values(), ids=EDITS)
def test_the_digest_of_a_metric_has_its_code_and_its_helpers(metrics, name, content):
    before = digests("evaluate.metrics=[mine,chrf]")
    (metrics / name).write_text(content)
    after = digests("evaluate.metrics=[mine,chrf]")
    assert before["mine"] != after["mine"]
    assert before["chrf"] == after["chrf"]


def test_a_comment_does_not_change_a_digest(metrics):
    before = digests("evaluate.metrics=[mine]")
    (metrics / "own.py").write_text(f"# A comment.\n{HELPER}")
    assert digests("evaluate.metrics=[mine]") == before


@pytest.mark.parametrize(
    ("library", "changed"),
    [
        ("sacrebleu", {"chrf"}),
        ("rouge_score", {"rouge_l"}),
        ("evaluate", {"chrf", "rouge_l", "exact_match", "answer_match", "token_f1"}),
    ],
)
def test_the_digest_of_a_metric_has_the_versions_of_its_libraries(monkeypatch, library, changed):
    before, version = digests(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    after = digests()
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_metric_by_its_path_has_the_name_of_its_file_and_counts_with_its_folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    file = folder / "mine.py"
    file.write_text(METRIC)
    shutil.copy(metric_loading.METRICS / "row_metric.py", folder)
    (folder / "own.py").write_text(HELPER)
    (folder / "deeper.py").write_text("RESULT = 0.25\n")
    (folder / "words.txt").write_text("a")
    before = digests(f"evaluate.metrics=[{file}]")
    assert list(before) == ["mine"]
    (folder / "words.txt").write_text("b")
    assert digests(f"evaluate.metrics=[{file}]") != before


def test_a_module_that_is_no_installed_library_counts_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outside_helper.py").write_text("X = 1\n")
    (tmp_path / "m.py").write_text("import outside_helper\n")
    before = source_digest.digest_module(tmp_path / "m.py")
    (tmp_path / "outside_helper.py").write_text("X = 2\n")
    assert source_digest.digest_module(tmp_path / "m.py") != before


@pytest.mark.parametrize("has_init", [True, False])
@pytest.mark.parametrize(
    "line", ["from own_package import part", "import own_package.part", "from own_package.part import X"]
)
def test_a_module_of_a_package_counts_by_its_code(tmp_path, monkeypatch, line, has_init):
    package = tmp_path / "own_package"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if has_init:
        (package / "__init__.py").write_text("")
    (package / "part.py").write_text("X = 1\n")
    (tmp_path / "m.py").write_text(f"{line}\n")
    before = source_digest.digest_module(tmp_path / "m.py")
    (package / "part.py").write_text("X = 2\n")
    assert source_digest.digest_module(tmp_path / "m.py") != before
    assert "own_package" not in sys.modules


JUDGE = ["evaluate.judge.model=a", "evaluate.judge.address=http://127.0.0.1:1/v1"]


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("evaluate.judge.model=b", True),
        ("evaluate.judge.instructions=Be strict.", True),
        ("evaluate.judge.address=https://user:secret@example.org/v1", True),
        ("evaluate.judge.address=http://user:secret@localhost:2/v1", False),
    ],
)
def test_the_digest_of_a_judge_has_what_it_is_asked(override, changes):
    before, after = (
        ruler.make(command_line.compose("evaluate", command_line.parse([*JUDGE, *more])[1])).digests["judge"]
        for more in ([], [override])
    )
    assert (before != after) == changes


def test_the_digest_of_the_contract_is_of_an_interfaces_own_checks(monkeypatch, tmp_path):
    before = {name: contract_suite.digest_of(name) for name in ("chat", "prompt")}
    table = tmp_path / "table.yaml"
    table.write_text(contract_suite.TABLE.read_text() + "- {name: one more, only: chat}\n")
    monkeypatch.setattr(contract_suite, "TABLE", table)
    assert contract_suite.digest_of("chat") != before["chat"]
    assert contract_suite.digest_of("prompt") == before["prompt"]


@pytest.fixture
def scored(store, evaluate, metrics, tmp_path):
    """All variants are scored by a metric of their own; the override of the prompt set and its sha256."""
    rows = [make_row("a", tags=["x"]), make_row("b", "What is the capital of France?", "Paris"), make_row("c")]
    words, sha256 = write_prompt_set(tmp_path / "ruled.jsonl", rows)
    words = [words, "evaluate.metrics=[answer_match,mine]"]
    assert evaluate(*words).returncode == 0
    return words, sha256


@pytest.fixture
def no_model(scored, monkeypatch):
    """No model can be loaded."""
    monkeypatch.setattr(scoring, "loaded", None)


@pytest.mark.usefixtures("no_model")
def test_a_changed_metric_scores_all_variants_again_from_their_answers(store, evaluate, scored, metrics):
    words, sha256 = scored
    assert "All variants are already scored" in evaluate(*words).stdout
    before = {name: scorecard.read(variant, sha256) for name, variant in store.variants.items()}
    counts = scorecard.metrics_of(store.greedy, sha256)
    (metrics / "deeper.py").write_text("RESULT = 0.75\n")
    done = evaluate(*words)
    assert (done.returncode, done.stdout.count("(from its kept answers)")) == (0, len(before)), done.stderr
    for name, variant in store.variants.items():
        card = scorecard.read(variant, sha256)
        assert card.scores == before[name].scores | {"mine": [0.75] * 3}
        assert (card.answers, card.repeats, card.errors) == (before[name].answers, [], [None] * 3)
    changed = {key for key, value in scorecard.metrics_of(store.greedy, sha256).items() if value != counts[key]}
    assert changed == {"mine/mean", "mine/ci_low", "mine/ci_high", "ruled/mine", "ruled/mine_low", "ruled/mine_high"}
    assert "All variants are already scored" in evaluate(*words).stdout


@pytest.mark.slow
def test_the_scorecard_is_the_same_as_if_the_variant_were_asked_again(store, evaluate, scored, metrics):
    words, sha256 = scored
    (metrics / "own.py").write_text(HELPER.replace("return RESULT", "return 1 - RESULT"))
    assert evaluate(*words).returncode == 0
    kept = store.scorecard_bytes(store.greedy, sha256)
    assert evaluate(*words, f"run_id={store.greedy.run_id}").returncode == 0
    assert store.scorecard_bytes(store.greedy, sha256) == kept


@pytest.mark.usefixtures("no_model")
@pytest.mark.slow
def test_an_added_metric_is_scored_from_the_answers_and_the_others_stay(store, evaluate, scored):
    words, sha256 = scored
    assert evaluate(words[0], "evaluate.metrics=[chrf]").returncode == 0
    assert set(scorecard.read(store.greedy, sha256).scores) == {"chrf", "answer_match", "mine"}
    assert "Scored" not in evaluate(*words).stdout


@pytest.mark.usefixtures("no_model")
@pytest.mark.slow
def test_a_killed_scoring_of_kept_answers_asks_no_model_afterwards(store, evaluate, scored, metrics, monkeypatch):
    words, sha256 = scored
    (metrics / "deeper.py").write_text("RESULT = 0.75\n")
    with monkeypatch.context() as patch:
        die_in(patch, scorecard, "log")
        assert evaluate(*words, f"run_id={store.greedy.run_id}").returncode == KILLED
    assert scorecard.metrics_of(store.greedy, sha256) is None
    assert evaluate(*words).returncode == 0
    assert scorecard.read(store.greedy, sha256).scores["mine"] == [0.75] * 3


@pytest.mark.usefixtures("no_model")
@pytest.mark.slow
def test_a_scorecard_of_an_earlier_version_is_read_and_scored_again_from_its_answers(store, evaluate, scored):
    words, sha256 = scored
    for variant in store.variants.values():
        mark = {key: value for key, value in scorecard.mark_of(variant, sha256).items() if key != "ruler"}
        old = json.dumps(mark | {"metrics": ["answer_match", "mine"], "seed": 0, "repeats": 1})
        tag = f"{SCORECARD}.{sha256[:16]}"
        mlflow.MlflowClient().set_logged_model_tags(variant.model_id, {tag: old})
    assert scorecard.metrics_of(store.greedy, sha256)["answer_match/mean"] == 1
    done = evaluate(*words)
    assert done.stdout.count("(from its kept answers)") == len(store.variants), done.stderr
    assert scorecard.parts_of(store.greedy, sha256)["mine"]


@pytest.mark.slow
def test_a_changed_contract_asks_only_the_contract_suite(store, evaluate, scored, monkeypatch, tmp_path):
    words, sha256 = scored
    before = scorecard.read(store.greedy, sha256)
    table = tmp_path / "table.yaml"
    table.write_text(contract_suite.TABLE.read_text() + "- {name: one more}\n")
    monkeypatch.setattr(contract_suite, "TABLE", table)
    monkeypatch.setattr(scoring, "answer_rows", None)
    assert evaluate(*words).returncode == 0
    assert scorecard.metrics_of(store.greedy, sha256)["contract/total"] == 40
    assert scorecard.read(store.greedy, sha256) == before


@pytest.mark.slow
def test_other_repeats_ask_only_sampled_variants_again(store, evaluate, scored):
    words, sha256 = scored
    done = evaluate(*words, "evaluate.repeats=2", "evaluate.seed=4")
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "Scored" in line] == [
        f"Scored {store.sampled.name}"
    ]
    assert len(scorecard.read(store.sampled, sha256).repeats) == 1


@pytest.mark.slow
def test_the_judge_is_asked_again_only_if_the_judge_has_changed(store, evaluate, scored, metrics, judge):  # noqa: F811
    (words, sha256), (switch, handler) = scored, judge
    words = [*words, *switch, f"run_id={store.greedy.run_id}"]
    assert evaluate(*words).returncode == 0
    asked = len(handler.requests)
    (metrics / "deeper.py").write_text("RESULT = 0.75\n")
    assert evaluate(*words).returncode == 0
    assert (asked, len(handler.requests)) == (3, 3)
    assert scorecard.read(store.greedy, sha256).scores["judge"] == [0.5] * 3
    assert evaluate(*words, "evaluate.judge.instructions=Be strict.").returncode == 0
    assert len(handler.requests) == 6


BROKEN_METRICS = {
    "import no_such_module\n": "no_such_module",
    "x = (\n": "was never closed",
    "x = 1\n": "no class that is an evaluate.Metric",
    "raise SystemExit(3)\n": "SystemExit: 3",
    "1 / 0\n": "ZeroDivisionError",
}


@pytest.mark.parametrize(("code", "reason"), BROKEN_METRICS.items(), ids=BROKEN_METRICS.values())
def test_a_metric_that_cannot_be_loaded_is_refused_before_anything_is_asked(tmp_path, code, reason):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(StepError, match=f"metric .*mine.py cannot be loaded.*{reason}"):
        digests(f"evaluate.metrics=[{tmp_path / 'mine.py'}]")


def test_a_metric_by_a_relative_path_is_searched_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import no_such_module\n")
    monkeypatch.setattr(ruler, "from_user", lambda path: str(tmp_path / path))
    with pytest.raises(StepError, match=f"metric {tmp_path}/mine.py cannot be loaded"):
        digests("evaluate.metrics=[mine.py]")


@pytest.mark.slow
def test_the_command_that_makes_scores_comparable_names_a_metric_by_its_file(store, evaluate, metrics, tmp_path):
    words, _ = write_prompt_set(tmp_path / "rows.jsonl", [make_row("a"), make_row("b")])
    own = tmp_path / "own" / "mine.py"
    own.parent.mkdir()
    for file in ("mine.py", "own.py", "deeper.py", "row_metric.py"):
        shutil.copy(metrics / file, own.parent)
    (metrics / "mine.py").unlink()
    words = [words, f"evaluate.metrics=[answer_match,{own}]"]
    assert evaluate(*words).returncode == 0
    (own.parent / "deeper.py").write_text("RESULT = 0.75\n")
    assert evaluate(*words, f"run_id={store.greedy.run_id}").returncode == 0
    config = command_line.compose("register", [words[0], "promotion.metric=mine"])
    with pytest.raises(StepError) as error:
        register(config)
    command = shlex.split(error.value.faults[0].partition("`")[2].partition("`")[0])
    metrics_override = next(word for word in command if word.startswith("evaluate.metrics"))
    assert evaluate(words[0], metrics_override).returncode == 0
    assert register(replace(config, dry_run=True)).decision.promote
