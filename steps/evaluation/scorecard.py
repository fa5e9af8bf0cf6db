"""What is known of a variant on a prompt set: a mark and metrics on the LoggedModel, and two files of its run.

The mark (a tag) is written last and tells how the variant was asked, and MLflow's digest of the dataset: by the
digest the metrics of several prompt sets on one model are told apart. Aggregates need no artifact.
`scorecards/<first 16 of the prompt set's sha256>.json` is the scorecard: the same bytes however often and by
however many processes the rows were asked. How long the answers took is beside it in `latencies/`.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from steps.config.schema import EvaluateConfig
from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet
from steps.store.variants import Variant, load_artifact

TAG = "phi3.scorecard"


@dataclass(frozen=True)
class Scorecard:
    """Every list but `repeats` has one entry a row, in the order of the prompt set.

    A skipped row has no answer and no scores (None); a row with an error has the answer "". `scores` are means
    over all repeats, of which `answers` is the first and `repeats` are the others. `metrics` are the aggregates by
    their full names (`answer_match/ci_low`); `by_tag` has the same for each tag, and how many `rows` it has.
    """

    prompt_set: dict[str, Any]  # name, sha256, rows
    ids: list[str]
    tags: list[list[str]]
    answers: list[str | None]
    repeats: list[list[str | None]]
    errors: list[str | None]
    skipped: list[str | None]
    scores: dict[str, list[float | None]]
    metrics: dict[str, float]
    by_tag: dict[str, dict[str, float]]


def log(card: Scorecard, latencies: list[float | None]) -> None:
    """Log a scorecard to the active run, with how many milliseconds the answer to each row took."""
    import mlflow

    sha256 = card.prompt_set["sha256"]
    mlflow.log_text(json.dumps(asdict(card), ensure_ascii=False, indent=1), file(sha256))
    mlflow.log_dict({"ids": card.ids, "latency_ms": latencies}, latency_file(sha256))


def read(variant: Variant, sha256: str) -> Scorecard:
    """The scorecard of a variant on a prompt set; raises StepError where there is none to read."""
    return Scorecard(**_artifact(variant, file(sha256)))


def read_latencies(variant: Variant, sha256: str) -> list[float | None]:
    """The milliseconds that each row's answer took: its part of the time of its batch."""
    return _artifact(variant, latency_file(sha256))["latency_ms"]


def row_scores(variant: Variant, sha256: str) -> dict[str, list[float]]:
    """The scores of every row by metric, in the order of the prompt set; NaN for a row that was skipped."""
    return row_content(variant, sha256)["scores"]


def row_content(variant: Variant, sha256: str) -> dict[str, Any]:
    """`ids`, `answers` and `scores` (by metric) of every row; raises StepError where there is nothing."""
    card = read(variant, sha256)
    scores = {name: [math.nan if score is None else score for score in rows] for name, rows in card.scores.items()}
    return {"ids": card.ids, "answers": card.answers, "scores": scores}


def file(prompt_set_sha256: str) -> str:
    """The artifact of a scorecard."""
    return f"scorecards/{prompt_set_sha256[:16]}.json"


def latency_file(prompt_set_sha256: str) -> str:
    """The artifact with what differs between two evaluations."""
    return f"latencies/{prompt_set_sha256[:16]}.json"


def mark(rows: PromptSet, digest: str, metrics: list[str], config: EvaluateConfig) -> str:
    """The value of the tag that says: this scorecard is whole."""
    return json.dumps({"prompt_set_sha256": rows.sha256, "digest": digest, "metrics": sorted(metrics)} | _asked(config))


def tag(prompt_set_sha256: str) -> str:
    """The name of the tag: one for each prompt set, whatever it is called."""
    return f"{TAG}.{prompt_set_sha256[:16]}"


def has_scorecard(variant: Variant, rows: PromptSet, metrics: list[str], config: EvaluateConfig) -> bool:
    """Whether a variant was asked these very rows in this way, and scored with these metrics at least."""
    known = _mark_of(variant, rows.sha256)
    asked = {"prompt_set_sha256": rows.sha256} | _asked(config)
    return all(known.get(key) == value for key, value in asked.items()) and set(metrics) <= set(known["metrics"])


def is_scored_at_all(variant: Variant) -> bool:
    """Whether a variant has a whole scorecard on any prompt set."""
    return any(key.startswith(TAG) and json.loads(mark) for key, mark in variant.tags.items())


def scores(variant: Variant, sha256: str) -> dict[str, float] | None:
    """The variant's metrics on these very rows, with those that belong to no dataset (size); None if not scored."""
    known = _mark_of(variant, sha256)
    if known.get("prompt_set_sha256") != sha256:
        return None
    return {key: value for key, digest, value in variant.metrics if digest in (None, known["digest"])}


def _asked(config: EvaluateConfig) -> dict[str, Any]:
    """What decides over answers and scores, beside the variant, the rows and the names of the metrics."""
    asked: dict[str, Any] = {"seed": config.evaluate.seed, "repeats": config.evaluate.repeats}
    judge = config.evaluate.judge
    return asked | ({"judge": [judge.model, judge.instructions]} if judge.model else {})


def _mark_of(variant: Variant, sha256: str) -> dict[str, Any]:
    return json.loads(variant.tags.get(tag(sha256), "{}"))


def _artifact(variant: Variant, path: str) -> dict[str, Any]:
    try:
        return load_artifact(variant, path)
    except Exception as error:  # a store, a server or a folder may each lose a file in its own way
        raise StepError(
            f"{path} of {variant.name} (run {variant.run_id}) cannot be read ({type(error).__name__}). "
            f"Score it again: `python -m steps.evaluate run_id={variant.run_id}`."
        ) from error
