"""What people look at: tables, pages and pictures of scored variants."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.evaluation import plots, report, scores, speed
from steps.evaluation.plots import Point
from steps.evaluation.report import Entry
from steps.evaluation.scorecard import Scorecard
from steps.store.variants import Variant


def point(quality, speed, name="v"):
    return Point(name, "onnx", quality, quality, quality, speed, speed, speed, 1.0)


def entry(name, scores, **metrics):
    mean = sum(score for score in scores if score is not None) / len(scores)
    found = {"answer_match/mean": mean, "answer_match/ci_low": mean - 0.1, "answer_match/ci_high": mean + 0.1}
    by_tag = {"odd|tag": {"rows": 2.0} | found}
    count = len(scores)
    card = Scorecard(
        {"name": "facts", "sha256": "a" * 64, "rows": count},
        [str(index) for index in range(count)],
        [["odd|tag"]] * count,
        ["said"] * count,
        [],
        [None] * count,
        ["too long" if score is None else None for score in scores],
        {"answer_match": scores},
        found,
        by_tag,
    )
    variant = Variant(f"m-{name}123456", f"r-{name}", "same name", {}, {"mode": "onnx"}, ())
    return Entry(name, variant, card, found | {key.replace("__", "/"): value for key, value in metrics.items()})


FRONTS = {
    "one": ([(0.9, 10)], [(0.9, 10)]),
    "slower and worse is out": ([(0.9, 10), (0.8, 5)], [(0.9, 10)]),
    "faster or better stays": ([(0.8, 20), (0.9, 10), (0.7, 15)], [(0.9, 10), (0.8, 20)]),
    "as good and slower is out": ([(0.9, 10), (0.9, 12)], [(0.9, 12)]),
}


@pytest.mark.parametrize(("points", "front"), FRONTS.values(), ids=FRONTS)
def test_the_pareto_front(points, front):
    found = plots.pareto_front([point(*numbers) for numbers in points])
    assert [(one.quality, one.speed) for one in found] == front


def test_the_leaderboard_has_a_cell_for_everything_and_none_for_what_is_unknown():
    entries = [entry("a", [1.0, 1.0], speed__tokens_per_second=50.0), entry("b", [0.0, 1.0])]
    table = report.leaderboard(entries, ["answer_match"])
    assert table["variant"] == ["a", "b"]
    assert table["answer_match/mean"] == [1.0, 0.5]
    assert table["tokens_per_second"] == [50.0, None]
    assert all(len(column) == 2 for column in table.values())


def test_pairs_are_compared_row_by_row_and_a_skipped_row_counts_as_0():
    ours, theirs = [1.0] * 30 + [None], [0.0] * 30 + [1.0]
    (pair,) = report.pairwise([entry("a", ours), entry("b", theirs)], "answer_match")
    assert (pair["variant"], pair["is"], pair["than"], pair["rows"]) == ("a", "better", "b", 31)
    assert pair["difference"] == pytest.approx(29 / 31)
    assert 0 < pair["ci_low"] < pair["difference"] <= pair["ci_high"]
    (pair,) = report.pairwise([entry("a", [0.0, 1.0] * 10), entry("b", [1.0, 0.0] * 10)], "answer_match")
    assert pair["is"] == "undecided"


def test_a_variant_without_scores_of_the_rows_is_in_no_pair():
    without = replace(entry("c", [1.0]), card=replace(entry("c", [1.0]).card, scores={}))
    pairs = report.pairwise([entry("a", [1.0]), without, entry("b", [0.0])], "answer_match")
    assert len(pairs) == 1
    assert report.pairwise([entry("a", [1.0]), without], "answer_match") == []


def test_a_metric_without_scores_of_the_rows_has_no_picture_by_tag(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "scores_by_tag", lambda by_variant, *_: drawn.append(by_variant))
    monkeypatch.setattr(mlflow, "log_figure", lambda *_: None)
    report._log_pictures([entry("a", [1.0])], "bleu", "facts")
    assert drawn == []
    report._log_pictures([entry("a", [1.0])], "answer_match", "facts")
    assert len(drawn) == 1


def test_the_first_metric_is_the_prompt_sets_own_where_it_has_one():
    assert scores.first(command_line.compose("evaluate", [])) == "answer_match"
    assert scores.first(command_line.compose("evaluate", ["evaluate.metrics=[chrf,rouge_l]"])) == "chrf"
    assert scores.first(command_line.compose("evaluate", ["prompt_set=instructions"])) == "instruction_match"


def test_a_metric_without_scores_of_the_rows_is_on_the_page_without_an_interval():
    plain = entry("a", [1.0])
    card = replace(plain.card, metrics=plain.card.metrics | {"bleu/mean": 0.25})
    assert "| all | 1 | 1.000 (0.900 to 1.100) | 0.250 |" in report.page(replace(plain, card=card))


def test_tags_that_the_picture_leaves_out_are_told():
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


def test_the_page_says_what_was_asked_scored_and_spent():
    page = report.page(entry("a", [1.0, None], speed__latency_p50_ms=12.5))
    assert "1 of 2 rows asked, 0 with an error" in page
    assert "| odd/tag | 2 | 0.500 (0.400 to 0.600) |" in page
    assert "| latency p50 ms | 12.5 |" in page


def test_an_evaluation_leaves_tables_pictures_and_pages_and_measures_later_what_it_left_out(typed, checkpoint):
    for precision in ("fp32", "int4"):
        build(command_line.compose("build", ["mode=onnx", f"precision={precision}"]), checkpoint)
    assert typed("evaluate", "evaluate.speed=false").returncode == 0
    client = mlflow.MlflowClient()
    run = _evaluation(client)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"leaderboard.json", "pairwise.json", "scores_by_tag.png"} <= files
    assert "quality_against_speed.png" not in files
    (variant, _) = client.search_logged_models(["0"])
    pages = {file.path for file in client.list_artifacts(variant.source_run_id, "scorecards")}
    assert {path.rpartition(".")[2] for path in pages} == {"json", "md"}
    before = mlflow.artifacts.load_dict(f"runs:/{variant.source_run_id}/{_json(pages)}")

    later = typed("evaluate", "evaluate.speed_seconds=0.05")
    assert later.returncode == 0
    assert "Scored" not in later.stdout
    run = _evaluation(client)
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/leaderboard.json")
    speeds = [row[table["columns"].index("tokens_per_second")] for row in table["data"]]
    assert len(speeds) == 2
    assert min(speeds) > 0
    assert "quality_against_speed.png" in {file.path for file in client.list_artifacts(run.info.run_id)}
    assert mlflow.artifacts.load_dict(f"runs:/{variant.source_run_id}/{_json(pages)}") == before
    assert "Every variant has a scorecard" in typed("evaluate").stdout
    assert _evaluation(client).info.run_id == run.info.run_id

    # One that lost its scorecard is told, and the other is shown.
    other = next(model for model in client.search_logged_models(["0"]) if model.model_id != variant.model_id)
    artifacts = client.get_run(variant.source_run_id).info.artifact_uri.removeprefix("file://")
    Path(artifacts, _json(pages)).unlink()
    done = typed("evaluate", "evaluate.speed=false", f"run_id={other.source_run_id}")
    assert done.returncode == 1
    assert f"{_json(pages)} of {variant.name} (run {variant.source_run_id}) cannot be read" in done.stderr
    run = _evaluation(client)
    assert run.info.status == "FAILED"
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/leaderboard.json")
    assert [row[table["columns"].index("model_id")] for row in table["data"]] == [other.model_id]


DEATHS = {
    "before the report is marked": (report, "_mark", ["evaluate.speed=false"]),
    "before the pictures": (report, "_log_pictures", ["evaluate.speed=false"]),
    "before the comparison is marked": (mlflow, "set_tag", ["evaluate.speed=false"]),
    "between calls and medians": (speed, "metrics", []),
    "between medians and page": (report, "page", []),
}


def test_a_report_that_was_killed_is_finished_by_the_next_evaluation(typed, checkpoint, tmp_path, monkeypatch):
    build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models(["0"])
    monkeypatch.setattr(speed, "bench", lambda variants: contextlib.nullcontext(_Bench()))
    for number, (where, name, words) in enumerate(DEATHS.values()):
        words = [_questions(tmp_path / f"{number}.jsonl"), *words]
        with monkeypatch.context() as patch:
            _die(patch, where, name)
            assert typed("evaluate", *words).returncode == KILLED
        mended = typed("evaluate", *words)
        assert (mended.returncode, "Every variant" in mended.stdout) == (0, False), (where, name)
        files, tables = _files(client, model), _files(client, _evaluation(client), "")
        assert {path.rpartition(".")[2] for path in files} == {"json", "md"}
        assert {"leaderboard.json", "scores_by_tag.png"} <= tables.keys()
        assert "Every variant has a scorecard" in typed("evaluate", *words).stdout
    # The same as of one that nobody killed.
    assert typed("evaluate", *words, "evaluate.speed=false", f"run_id={model.source_run_id}").returncode == 0
    assert files == _files(client, model)
    assert tables == _files(client, _evaluation(client), "")


KILLED = 99


class _Bench:
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


def _die(patch, where, name):
    """Have a function end the process, as far as a test can be ended."""

    def die(*_, **__):
        sys.exit(KILLED)

    patch.setattr(where, name, die)


def _questions(file):
    """A prompt set of its own: the words that choose it."""
    rows = [
        {"id": str(number), "prompt": prompt, "target": target, "tags": ["x"]}
        for number, (prompt, target) in enumerate([("What is the capital of Spain?", "Madrid"), (file.stem, "nothing")])
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompt_set.path={file}"


def _files(client, of, folder="scorecards"):
    """The content of files of a run, or of the run of a model, by their paths."""
    run_id = getattr(of, "source_run_id", None) or of.info.run_id
    paths = [entry.path for entry in client.list_artifacts(run_id, folder) if not entry.is_dir]
    return {path: Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{path}")).read_bytes() for path in paths}


def _evaluation(client):
    """The run of the latest evaluation."""
    return client.search_runs(["0"], "attributes.run_name LIKE 'evaluate-%'", order_by=["start_time DESC"])[0]


def _json(paths):
    return next(path for path in paths if path.endswith(".json"))
