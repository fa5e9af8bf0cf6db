"""A store with real variants, and scorecards written to it without asking the variants."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

from steps import command_line
from steps.evaluation import ruler, scorecard
from steps.evaluation.scorecard import Scorecard
from tests.conftest import PROJECT

ROWS = 64


def build(store: Path, *words: str) -> None:
    """Build variants in their own process, and log them to the store."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "steps.build", *words]
    subprocess.run(command, cwd=store, env=environment, check=True, capture_output=True, text=True)


def copied(store: Path, folder: Path) -> str:
    """Copy the database of a store and return its address; the models stay where they are."""
    folder.mkdir(exist_ok=True)
    shutil.copy(store / "mlflow.db", folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


def write_prompt_set(path: Path, mark: str) -> Path:
    """Write a prompt set of 64 rows; another `mark` makes other rows."""
    rows = [{"id": str(number), "prompt": f"{mark} {number}?", "target": "yes"} for number in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_scorecard(variant, rows, eighths: int, answers: list[str] | None = None) -> None:
    """Write a scorecard with this many eighths of the rows right. A difference of one eighth is significant."""
    right = len(rows.rows) * eighths // 8
    scores = [1.0] * right + [0.0] * (len(rows.rows) - right)
    write_card(variant, rows, card_of(rows, scores, answers or ["yes"] * len(scores)))


def card_of(rows, scores: list[float | None], answers: list[str]) -> Scorecard:
    """Return a scorecard with the scores and answers of every row; None is a skipped row."""
    known = [score for score in scores if score is not None]
    nothing = [None] * len(scores)
    return Scorecard(
        prompt_set={"name": rows.name, "sha256": rows.sha256, "rows": len(scores)},
        ids=[row.id for row in rows.rows],
        tags=[[]] * len(scores),
        answers=answers,
        repeats=[],
        errors=nothing,
        skipped=["too long" if score is None else None for score in scores],
        scores={"answer_match": scores},
        metrics={"answer_match/mean": sum(known) / len(known)},
        by_tag={},
    )


@cache
def usual_ruler():
    """Return the ruler that `evaluate` has by default."""
    return ruler.make(command_line.compose("evaluate", []))


def write_card(variant, rows, card: Scorecard) -> None:
    """Log a scorecard as `evaluate` does: the rows, the means on the model, and the mark last."""
    import mlflow

    client, digest = mlflow.MlflowClient(), rows.sha256[:16]
    client.log_text(variant.run_id, json.dumps(asdict(card)), scorecard.file(rows.sha256))
    for key, value in card.metrics.items():
        client.log_metric(
            variant.run_id, key, value, model_id=variant.model_id, dataset_digest=digest, dataset_name="made"
        )
    measure = usual_ruler()
    parts = {"answer_match": measure.digests["answer_match"]}
    mark = scorecard.mark(rows, digest, measure.asked(variant), parts)
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): mark})
