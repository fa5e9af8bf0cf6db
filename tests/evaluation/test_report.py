"""What people look at: tables, pages and pictures of scored variants."""

import mlflow
import pytest

from steps import cli
from steps.build import build
from steps.evaluation import plots, report
from steps.evaluation.plots import Point
from steps.evaluation.report import Entry
from steps.evaluation.scorecard import Scorecard
from steps.tracking import Variant


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


def test_pairs_are_compared_on_the_rows_that_both_were_asked():
    ours, theirs = [1.0] * 30 + [None], [0.0] * 30 + [1.0]
    (pair,) = report.pairwise([entry("a", ours), entry("b", theirs)], "answer_match")
    assert (pair["variant"], pair["is"], pair["than"], pair["rows"]) == ("a", "better", "b", 30)
    assert pair["difference"] == pair["ci_low"] == pair["ci_high"] == 1.0
    (pair,) = report.pairwise([entry("a", [0.0, 1.0] * 10), entry("b", [1.0, 0.0] * 10)], "answer_match")
    assert pair["is"] == "tied"


def test_the_page_says_what_was_asked_scored_and_spent():
    page = report.page(entry("a", [1.0, None], speed__latency_p50_ms=12.5))
    assert "1 of 2 rows asked, 0 with an error" in page
    assert "| odd/tag | 2 | 0.500 (0.400 to 0.600) |" in page
    assert "| latency p50 ms | 12.5 |" in page


def test_an_evaluation_leaves_tables_pictures_and_pages_and_measures_later_what_it_left_out(typed, checkpoint):
    for precision in ("fp32", "int4"):
        build(cli.compose("build", ["mode=onnx", f"precision={precision}"]), checkpoint)
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


def _evaluation(client):
    """The run of the latest evaluation."""
    return client.search_runs(["0"], "attributes.run_name = 'evaluate-facts'", order_by=["start_time DESC"])[0]


def _json(paths):
    return next(path for path in paths if path.endswith(".json"))
