"""What people look at: tables, pages and pictures of scored variants."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.evaluation import plots, ruler, scorecard, speed
from steps.evaluation.plots import Point
from steps.evaluation.report import comparison, leaderboard, state, variant_report
from steps.evaluation.report.comparison import Scored
from steps.evaluation.report.leaderboard import Standing
from steps.evaluation.scorecard import Scorecard
from tests.support import KILLED, die_in, make_prompt_set, make_row, make_variant, write_prompt_set


def _point(quality, speed, name="v"):
    return Point(name, "onnx", quality, quality, quality, speed, speed, speed, 1.0)


def _scored(name, row_scores, **metrics):
    """Return a variant with these scores of its rows; `speed__load_seconds=1.0` adds a metric."""
    mean, count = sum(score for score in row_scores if score is not None) / len(row_scores), len(row_scores)
    interval = {"answer_match/mean": mean, "answer_match/ci_low": mean - 0.1, "answer_match/ci_high": mean + 0.1}
    card = Scorecard(
        prompt_set={"name": "facts", "sha256": "a" * 64, "rows": count},
        ids=[str(index) for index in range(count)],
        tags=[["odd|tag"]] * count,
        answers=["an answer"] * count,
        repeats=[],
        errors=[None] * count,
        skipped=["too long" if score is None else None for score in row_scores],
        scores={"answer_match": row_scores},
        metrics=interval,
        by_tag={"odd|tag": {"rows": 2.0} | interval},
    )
    variant = make_variant(name="same name", model_id=f"m-{name}123456", run_id=f"r-{name}")
    return Scored(name, variant, card, interval | {key.replace("__", "/"): value for key, value in metrics.items()})


def _page(scored):
    return variant_report.page(scored.variant, scored.card, scored.metrics)


FRONTS = {
    "one": ([(0.9, 10)], [(0.9, 10)]),
    "slower and worse is out": ([(0.9, 10), (0.8, 5)], [(0.9, 10)]),
    "faster or better stays": ([(0.8, 20), (0.9, 10), (0.7, 15)], [(0.9, 10), (0.8, 20)]),
    "as good and slower is out": ([(0.9, 10), (0.9, 12)], [(0.9, 12)]),
}


@pytest.mark.parametrize(("points", "front"), FRONTS.values(), ids=FRONTS)
def test_the_pareto_front(points, front):
    on_front = plots.pareto_front([_point(*numbers) for numbers in points])
    assert [(point.quality, point.speed) for point in on_front] == front


def test_the_table_has_a_cell_for_everything_and_none_for_what_is_unknown():
    entries = [_scored("a", [1.0, 1.0], speed__tokens_per_second=50.0), _scored("b", [0.0, 1.0])]
    table = comparison.leaderboard(entries, ["answer_match"])
    assert table["variant"] == ["a", "b"]
    assert table["answer_match/mean"] == [1.0, 0.5]
    assert table["speed/tokens_per_second"] == [50.0, None]
    assert table["model_id"] == ["m-a123456", "m-b123456"]
    assert all(len(column) == 2 for column in table.values())


def test_pairs_are_compared_row_by_row_and_a_skipped_row_counts_as_0():
    ours, theirs = [1.0] * 30 + [None], [0.0] * 30 + [1.0]
    (pair,) = comparison.pairwise([_scored("a", ours), _scored("b", theirs)], "answer_match")
    assert (pair["variant"], pair["is"], pair["than"], pair["rows"]) == ("a", "better", "b", 31)
    assert pair["difference"] == pytest.approx(29 / 31)
    assert 0 < pair["ci_low"] < pair["difference"] <= pair["ci_high"]
    (pair,) = comparison.pairwise([_scored("b", theirs), _scored("a", ours)], "answer_match")
    assert pair["is"] == "worse"
    (pair,) = comparison.pairwise([_scored("a", [0.0, 1.0] * 10), _scored("b", [1.0, 0.0] * 10)], "answer_match")
    assert pair["is"] == "undecided"


def test_variants_without_answered_rows_in_common_are_undecided():
    (pair,) = comparison.pairwise([_scored("a", [1.0, None]), _scored("b", [None, 1.0])], "answer_match")
    assert (pair["is"], pair["difference"], pair["rows"]) == ("undecided", 0, 2)


def test_a_variant_without_row_scores_is_in_no_pair():
    whole = _scored("c", [1.0])
    without = replace(whole, card=replace(whole.card, scores={}))
    pairs = comparison.pairwise([_scored("a", [1.0]), without, _scored("b", [0.0])], "answer_match")
    assert len(pairs) == 1
    assert comparison.pairwise([_scored("a", [1.0]), without], "answer_match") == []


def test_a_metric_without_row_scores_has_no_picture_by_tag(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "scores_by_tag", lambda by_variant, *_: drawn.append(by_variant))
    monkeypatch.setattr(mlflow, "log_figure", lambda *_: None)
    comparison.log_pictures([_scored("a", [1.0])], "bleu", "facts")
    assert drawn == []
    comparison.log_pictures([_scored("a", [1.0])], "answer_match", "facts")
    assert len(drawn) == 1


def test_entries_with_the_same_name_are_told_apart_by_their_model():
    entries = [replace(_scored(name, [1.0]), name=shown) for name, shown in (("a", "v"), ("b", "v"), ("c", "w"))]
    assert [entry.name for entry in comparison.disambiguate(entries)] == ["v a12345", "v b12345", "w"]


def test_the_first_metric_is_the_prompt_sets_own_if_it_has_one():
    def first(*overrides):
        return ruler.make(command_line.compose("evaluate", list(overrides))).first

    assert first() == "answer_match"
    assert first("evaluate.metrics=[chrf,rouge_l]") == "chrf"
    assert first("prompt_set=instructions") == "instruction_match"


def test_a_metric_without_row_scores_is_on_the_page_without_an_interval():
    plain = _scored("a", [1.0])
    card = replace(plain.card, metrics=plain.card.metrics | {"bleu/mean": 0.25})
    assert "| all | 1 | 1.000 (0.900 to 1.100) | 0.250 |" in _page(replace(plain, card=card))


def test_the_title_says_how_many_tags_the_picture_leaves_out():
    tags = {str(number): {"rows": number, "chrf/mean": 0.5} for number in range(25)}
    assert plots.which_tags({"a": tags}) == "the 20 most frequent of 25 tags"
    assert plots.which_tags({"a": {"x": {"rows": 1}}}) == "by tag"


def test_the_picture_has_error_bars_marks_by_size_and_the_front():
    slow, fast = (
        Point(name, "onnx", 0.8, 0.7, 0.85, speed, speed - 2, speed + 3, 4e6 / speed)
        for name, speed in (("slow", 10), ("fast", 40))
    )
    (axes,) = plots.quality_against_speed([slow, fast], "chrf", "A title").axes
    bars = [
        segment.tolist() for container in axes.containers for part in container[2] for segment in part.get_segments()
    ]
    assert bars == [
        [[8, 0.8], [13, 0.8]],
        [[10, 0.7], [10, 0.85]],
        [[38, 0.8], [43, 0.8]],
        [[40, 0.7], [40, 0.85]],
    ]
    large, small = (
        marks.get_sizes()[0] for marks in axes.collections if marks.get_label().startswith(("slow", "fast"))
    )
    assert large == 4 * small
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert list(front.get_xdata()[1:]) == [40, 40]
    assert list(front.get_ydata()[:2]) == [0.8, 0.8]
    assert axes.get_title() == "A title"


def test_the_page_shows_what_was_asked_scored_and_spent():
    page = _page(_scored("a", [1.0, None], speed__latency_p50_ms=12.5, size__bytes=2.5e6))
    assert page.startswith("# same name\n")
    assert "Model `models:/m-a123456`, prompt set `aaaaaaaaaaaaaaaa`." in page
    assert "1 of 2 rows asked, 0 with an error" in page
    assert "| odd/tag | 2 | 0.500 (0.400 to 0.600) |" in page
    assert "| speed/latency_p50_ms | 12.5 |\n| size/bytes | 2.5e+06 |" in page


ROWS = make_prompt_set("a")
WORDS = {"m-2": "non-inferior", "m-1": "undecided"}
STANDING = Standing(["m-2", "m-1"], "m-2", champion_version="7", verdicts=WORDS, reason="it is cheaper")


@pytest.fixture
def ranked():
    """Return a variant that is not scored, a challenger and the champion."""
    mark = {scorecard.tag(ROWS.sha256): json.dumps({"prompt_set_sha256": ROWS.sha256, "digest": "d"})}
    metrics = [("answer_match/mean", "d", 0.5), ("size/bytes", None, 2.5e6), ("contract/passed", "d", 38.0)]
    metrics += [("contract/total", "d", 39.0), ("speed/tokens_per_second", "other", 9.0)]
    return [
        make_variant(name="not scored", model_id="m-0"),
        make_variant(name="slower", model_id="m-1", tags=mark, metrics=metrics),
        make_variant(name="best", model_id="m-2", tags=mark, metrics=metrics),
    ]


def test_the_main_jobs_table_has_the_order_of_the_ranking(ranked):
    content = leaderboard.as_dict(ranked, ROWS, ["answer_match"], STANDING)
    assert content["champion_version"] == "7"
    assert [row["variant"] for row in content["leaderboard"]] == ["best", "slower", "not scored"]
    assert content["leaderboard"][0] == {
        "variant": "best",
        "model_id": "m-2",
        "verdict": "non-inferior",
        "answer_match/mean": 0.5,
        "contract/passed": 38.0,
        "contract/total": 39.0,
        "size/bytes": 2.5e6,
        "speed/tokens_per_second": None,  # measured on other rows
        "memory/peak_mb": None,
    }


def test_the_leaderboard_has_a_star_a_verdict_and_a_reason(ranked, capsys):
    leaderboard.show(ranked, ROWS, ["answer_match"], STANDING)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:7]] == [
        ["★", "best", "0.500", "non-inferior", "38/39", "2.5", "-"],
        ["slower", "0.500", "undecided", "38/39", "2.5", "-"],
        ["not", "scored", "-", "-", "-", "-", "-"],
    ]
    assert lines[-2:] == ["★ best: it is cheaper.", "1 rows separate little: 1 of 3 variants are undecided."]


@pytest.mark.parametrize("name", ["onnx-int4-chat", "phi3_mini_4k-transformers-fp32-chat-few_shot-t0_7-max64"])
def test_the_leaderboard_fits_80_columns(capsys, name):
    mark = {scorecard.tag(ROWS.sha256): json.dumps({"prompt_set_sha256": ROWS.sha256, "digest": "d"})}
    metrics = [("answer_match/mean", "d", 0.5), ("size/bytes", None, 7.6e9), ("contract/passed", "d", 38.0)]
    metrics += [("contract/total", "d", 39.0), ("speed/tokens_per_second", "d", 12345.0)]
    variant = make_variant(name=name, model_id="m-2", tags=mark, metrics=metrics)
    leaderboard.show([variant], ROWS, ["answer_match", "chrf"], STANDING)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    assert "0.500" in "".join(lines)
    assert not any("…" in line for line in lines)


def test_the_leaderboard_is_sorted_by_score_whoever_is_champion(ranked):
    mark = {scorecard.tag(ROWS.sha256): json.dumps({"prompt_set_sha256": ROWS.sha256, "digest": "d"})}
    best = make_variant(name="highest", model_id="m-3", tags=mark, metrics=[("answer_match/mean", "d", 0.6)])
    table = leaderboard.rows_of([*ranked, best], ROWS, ["answer_match"], STANDING)
    assert [row["variant"] for row in table] == ["highest", "best", "slower", "not scored"]
    table = leaderboard.rows_of([*ranked, best], ROWS, [], replace(STANDING, less_is_better=True))
    assert [row["variant"] for row in table] == ["best", "slower", "highest", "not scored"]


@pytest.mark.slow
def test_an_evaluation_logs_tables_pictures_and_pages_and_later_measures_what_it_left_out(typed, checkpoint):
    for precision in ("fp32", "int4"):
        build(command_line.compose("build", ["mode=onnx", f"precision={precision}"]), checkpoint)
    assert typed("evaluate", "evaluate.speed=false").returncode == 0
    client = mlflow.MlflowClient()
    run = _latest_evaluation(client)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"leaderboard.json", "pairwise.json", "scores_by_tag.png"} <= files
    assert "quality_against_speed.png" not in files
    (variant, _) = client.search_logged_models(["0"])
    pages = {file.path for file in client.list_artifacts(variant.source_run_id, "scorecards")}
    assert {path.rpartition(".")[2] for path in pages} == {"json", "md"}
    before = mlflow.artifacts.load_dict(f"runs:/{variant.source_run_id}/{_json_of(pages)}")

    later = typed("evaluate", "evaluate.speed_seconds=0.05")
    assert later.returncode == 0
    assert "Scored" not in later.stdout
    run = _latest_evaluation(client)
    speeds = _column(run, "speed/tokens_per_second")
    assert len(speeds) == 2
    assert min(speeds) > 0
    assert "quality_against_speed.png" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert mlflow.artifacts.load_dict(f"runs:/{variant.source_run_id}/{_json_of(pages)}") == before
    assert "All variants are already scored on facts (118 rows)." in typed("evaluate").stdout
    assert _latest_evaluation(client).info.run_id == run.info.run_id

    # A variant that lost its scorecard is named, and the other is shown.
    other = next(model for model in client.search_logged_models(["0"]) if model.model_id != variant.model_id)
    artifacts = client.get_run(variant.source_run_id).info.artifact_uri.removeprefix("file://")
    Path(artifacts, _json_of(pages)).unlink()
    done = typed("evaluate", "evaluate.speed=false", f"run_id={other.source_run_id}")
    assert done.returncode == 1
    assert f"{_json_of(pages)} of {variant.name} (run {variant.source_run_id}) cannot be read" in done.stderr
    run = _latest_evaluation(client)
    assert run.info.status == "FAILED"
    assert _column(run, "model_id") == [other.model_id]


class FakeBench:
    """Measures nothing, and at once."""

    machine: ClassVar[dict] = {"read_bandwidth": 1e10}

    def measure(self, variant, rows, evaluation):
        return {
            "loads": [1.0],
            "single": [[0.1, 10]],
            "first_token": [],
            "batched": [[0.1, 10]],
            "weights_bytes": 10**6,
            "peak_bytes": 10**8,
            "gpu_peak_bytes": 0,
        }


DEATHS = {
    "before the report is marked": (state, "mark_finished", ["evaluate.speed=false"]),
    "before the scorecard is marked": (mlflow, "set_tag", ["evaluate.speed=false"]),
    "before the pictures": (comparison, "log_pictures", ["evaluate.speed=false"]),
    "before the comparison is marked": (state, "mark_compared", ["evaluate.speed=false"]),
    "between calls and medians": (speed, "metrics", []),
    "between medians and page": (variant_report, "page", []),
}


@pytest.mark.slow
def test_a_report_that_was_killed_is_finished_by_the_next_evaluation(typed, checkpoint, tmp_path, monkeypatch):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models(["0"])
    monkeypatch.setattr(speed, "bench", lambda variants: contextlib.nullcontext(FakeBench()))
    for number, (owner, function, words) in enumerate(DEATHS.values()):
        words = [_questions(tmp_path / f"{number}.jsonl"), *words]
        with monkeypatch.context() as patch:
            die_in(patch, owner, function)
            assert typed("evaluate", *words).returncode == KILLED
        finished = typed("evaluate", *words)
        assert (finished.returncode, "All variants are already scored" in finished.stdout) == (0, False), function
        files, tables = _files(client, model.source_run_id), _comparison_files(client)
        assert {path.rpartition(".")[2] for path in files} == {"json", "md"}
        assert {"leaderboard.json", "scores_by_tag.png"} <= tables.keys()
        assert "All variants are already scored" in typed("evaluate", *words).stdout
    # The same files as after an evaluation that was never killed.
    assert typed("evaluate", *words, "evaluate.speed=false", f"run_id={model.source_run_id}").returncode == 0
    assert files == _files(client, model.source_run_id)
    assert tables == _comparison_files(client)


def _questions(file):
    """Write a new prompt set; return the override that chooses it."""
    rows = [make_row("0", tags=["x"]), make_row("1", file.stem, "nothing", tags=["x"])]
    return write_prompt_set(file, rows)[0]


def _files(client, run_id, folder="scorecards"):
    """Return the content of the files in a folder of a run, by their paths."""
    paths = [entry.path for entry in client.list_artifacts(run_id, folder) if not entry.is_dir]
    return {path: Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{path}")).read_bytes() for path in paths}


def _comparison_files(client):
    return _files(client, _latest_evaluation(client).info.run_id, "")


def _latest_evaluation(client):
    return client.search_runs(["0"], "attributes.run_name LIKE 'evaluate-%'", order_by=["start_time DESC"])[0]


def _column(run, name):
    """Return a column of the leaderboard of an evaluation's run."""
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/leaderboard.json")
    return [row[table["columns"].index(name)] for row in table["data"]]


def _json_of(paths):
    return next(path for path in paths if path.endswith(".json"))
