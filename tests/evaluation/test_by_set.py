"""What a run keeps by the name of the prompt set."""

import mlflow

from steps.evaluation.report import by_set, views
from steps.evaluation.scorecard import Scorecard
from tests.support import make_prompt_set

CARD = Scorecard({}, [], [], [], [], [], [], {}, {"chrf/mean": 0.5, "chrf/ci_low": 0.4, "chrf/ci_high": 0.6}, {})


def test_another_set_of_the_same_name_has_a_label_of_its_own():
    client = mlflow.MlflowClient()
    first, second = make_prompt_set("a", name="mine"), make_prompt_set("b", name="mine")
    assert by_set.label(client, first) == "mine"
    assert by_set.label(client, second) == f"mine-{second.sha256[:4]}"
    assert by_set.label(client, first) == "mine"
    assert by_set.label(client, make_prompt_set("c", name="../fragen (1)?")) == "_fragen _1__"


def test_metrics_of_a_set_are_named_by_it_and_short():
    values = {"chrf/mean": 0.123456, "chrf/ci_low": 0.1, "chrf/ci_high": 0.2, "speed/tokens_per_second": 12.7}
    assert by_set.metrics("mine", values | {"size/bytes": 9.0}, CARD) == {
        "mine/chrf": 0.1235,
        "mine/chrf_low": 0.1,
        "mine/chrf_high": 0.2,
        "mine/tokens_per_second": 13,
    }


def test_the_view_of_a_set_is_written_once_and_a_description_is_kept():
    client = mlflow.MlflowClient()
    client.set_experiment_tag("0", "mlflow.note.content", "mine")
    assert views.prepare(client, "a set", "chrf").endswith("viewStateShareKey=a%20set")
    tags = client.get_experiment("0").tags
    assert "metrics.`a set/chrf`" in tags["mlflow.sharedViewState.a set"]
    assert tags["mlflow.note.content"] == "mine"
