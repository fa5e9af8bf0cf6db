"""What a run keeps by the name of the prompt set, so that another set overwrites nothing.

Metrics `facts/answer_match`, `facts/answer_match_low`, `facts/answer_match_high` and so on; the table of rows
`facts/answers.json`; the page `facts/scorecard.md`. The first set of a name in an experiment has the plain name.
Another set of that name gets some digits of its sha256 as well: `facts-3f2a`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from steps.evaluation import scores_log
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.store import names, runs
from steps.store.collisions import retried

if TYPE_CHECKING:
    from mlflow import MlflowClient

ENDINGS = {"/mean": "", "/ci_low": "_low", "/ci_high": "_high"}
LOGGED = "mlflow.loggedArtifacts"


def label(client: MlflowClient, rows: PromptSet) -> str:
    """Return what this experiment calls a prompt set, and record it."""
    # What MLflow takes as a part of a tag's or metric's name.
    name = re.sub(r"[^\w. -]", "_", rows.name)[:100].strip(". ") or "set"
    experiment = runs.experiment_id()
    tag, digest = names.SET + name, rows.sha256[:16]
    owner = client.get_experiment(experiment).tags.get(tag)
    if owner is None:
        retried(client.set_experiment_tag, experiment, tag, digest)
    return name if owner in (None, digest) else f"{name}-{digest[:4]}"


def metrics(label: str, values: dict[str, float], card: Scorecard) -> dict[str, float]:
    """Return the metrics of a prompt set under its label: every score with its interval, and what was timed."""
    named = {}
    for key in card.metrics:
        name, slash, aggregate = key.rpartition("/")
        if key in values:
            # Digits that nobody reads would fill the columns. The scorecard has all of them.
            named[f"{label}/{name}{ENDINGS.get(slash + aggregate, f'_{aggregate}')}"] = round(values[key], 4)
    for key in (names.TOKENS_PER_SECOND.key, names.PEAK_MEMORY.key):
        if key in values:
            named[f"{label}/{key.partition('/')[2]}"] = round(values[key])
    return named


def log(client: MlflowClient, label: str, rows: PromptSet, card: Scorecard, values: dict[str, float]) -> None:
    """Log a prompt set's metrics and its table of rows to the active run."""
    import mlflow

    run_id = runs.active_run_id()
    mlflow.log_metrics(metrics(label, values, card))
    table = f"{label}/answers.json"
    mlflow.log_text(scores_log.table(card, scores_log.dataset(rows).df), table)
    tables = json.loads(client.get_run(run_id).data.tags.get(LOGGED, "[]"))
    entry = {"path": table, "type": "table"}
    if entry not in tables:
        retried(client.set_tag, run_id, LOGGED, json.dumps([*tables, entry]))
