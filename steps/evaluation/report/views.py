"""The views of MLflow's UI that a step prepares: the runs of a prompt set with the columns that matter.

MLflow keeps a shared view in a tag of the experiment. A link with its name opens it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from steps.store import address, names, runs
from steps.store.collisions import retried
from steps.store.names import BYTES, CONTRACT_PASSED

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECTION = "scores"
CHART = {"runsCountToCompare": 20, "metricSectionId": SECTION, "deleted": False, "isGenerated": False}
# The parts of a state that are as MLflow's UI has them at first.
FIXED: dict[str, object] = {
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "runsHiddenMode": "FIRST_20_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    # MLflow adds sections of its own below ours; otherwise it sorts them all by name.
    "isAccordionReordered": True,
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "groupBy": None,
    "groupsExpanded": {},
    "autoRefreshEnabled": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}
ABOUT = """\
Ways to wrap one Phi-3 checkpoint, compared on the same questions. Built by `mlflow run .` of phi3-mlflow.

- A run such as `onnx-int4-chat` is a **variant**: its parameters, scores by prompt set (`facts/answer_match`), speed.
- `evaluate-…` compares all variants; `register-…` says which one became `models:/phi3@champion`, and why.
- The column `phi3.standing` says what the last promotion made of each variant.
"""


def prepare(client: MlflowClient, label: str, metric: str, lower: bool = False) -> str:
    """Write the view of a prompt set; returns the path of its page.

    Args:
        client: The store.
        label: What the experiment calls the prompt set.
        metric: The metric to sort by.
        lower: Whether a lower value is better.
    """
    experiment = client.get_experiment(runs.experiment_id())
    tags = {f"mlflow.sharedViewState.{label}": json.dumps(_state(label, metric, lower))}
    if names.NOTE not in experiment.tags:
        tags[names.NOTE] = ABOUT
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            retried(client.set_experiment_tag, experiment.experiment_id, key, value)
    share = f"workflowType=machine_learning&viewStateShareKey={quote(label)}"
    return f"#/experiments/{experiment.experiment_id}/runs?{share}"


def link(path: str) -> list[str]:
    """Return the lines that open a page: the command that starts the UI, if there is no server, and the address."""
    page = address.ui_address()
    start = [f"mlflow ui --port 5000{address.ui_arguments()}"] if page.startswith("http://127.0.0.1:5000") else []
    return [*start, f"{page}/{path}"]


def _state(label: str, metric: str, lower: bool) -> dict[str, object]:
    """Return the state of the page in the words of MLflow's UI: which runs, in which order, with which columns."""
    score, speed = f"{label}/{metric}", f"{label}/tokens_per_second"
    shown = [score, f"{score}_low", f"{score}_high", speed, BYTES.key, CONTRACT_PASSED.key]
    widths = {f"tags.`{names.STANDING}`": 215} | {f"metrics.`{key}`": 170 if key == score else 100 for key in shown}
    return FIXED | {
        # Only runs that have the score: the variants, and no step.
        "searchFilter": f"metrics.`{score}` >= -1000000000",
        "orderByKey": f"metrics.`{score}`",
        "orderByAsc": lower,
        "selectedColumns": list(widths),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "compareRunCharts": [_scatter(speed, score), *map(_bar, (score, speed, BYTES.key))],
        "compareRunSections": [
            {"uuid": SECTION, "name": f"Quality, speed and size on {label}", "display": True, "isReordered": True}
        ],
    }


def _scatter(speed: str, score: str) -> dict[str, object]:
    axes = {"xaxis": {"key": speed, "type": "METRIC"}, "yaxis": {"key": score, "type": "METRIC"}}
    return CHART | {"type": "SCATTER", "uuid": "quality-against-speed"} | axes


def _bar(key: str) -> dict[str, object]:
    return CHART | {"type": "BAR", "uuid": f"bar-{key}", "metricKey": key}
