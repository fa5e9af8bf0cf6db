"""The scorecard of a variant on a prompt set: a mark and metrics on the LoggedModel, and two files of its run.

The mark (a tag) is written last. It says how the variant was asked, and MLflow's digest of the dataset, which tells
the metrics of several prompt sets on one model apart. Reading aggregates needs no artifact.
`scorecards/<first 16 of the prompt set's sha256>.json` is the scorecard: the same bytes however often the evaluation
was interrupted. How long the answers took is in `latencies/`.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from steps.config.schema import EvaluateConfig
from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet
from steps.store import names
from steps.store.variants import Variant, load_artifact


@dataclass(frozen=True)
class Scorecard:
    """What one variant answered and scored. Every list but `repeats` has one entry for each row, in order.

    Attributes:
        prompt_set: name, sha256 and rows (how many).
        answers: The first repeat's answers; None if skipped, "" on an error.
        repeats: The answers of the other repeats.
        scores: By metric, means over all repeats; None if skipped.
        metrics: The aggregates by their full names, such as `answer_match/ci_low`.
        by_tag: The same for the rows of each tag, and how many `rows` it has.
    """

    prompt_set: dict[str, Any]
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
    """Log a scorecard to the active run, with the milliseconds that the answer to each row took."""
    import mlflow

    sha256 = card.prompt_set["sha256"]
    mlflow.log_text(json.dumps(asdict(card), ensure_ascii=False, indent=1), file(sha256))
    mlflow.log_dict({"ids": card.ids, "latency_ms": latencies}, latency_file(sha256))


def read(variant: Variant, sha256: str) -> Scorecard:
    """Return the scorecard of a variant on a prompt set; raises StepError if it cannot be read."""
    return Scorecard(**_artifact(variant, file(sha256)))


def read_latencies(variant: Variant, sha256: str) -> list[float | None]:
    """Return the milliseconds that each row's answer took: its share of its batch."""
    latencies: list[float | None] = _artifact(variant, latency_file(sha256))["latency_ms"]
    return latencies


def file(prompt_set_sha256: str) -> str:
    """Return the artifact of a scorecard."""
    return f"scorecards/{prompt_set_sha256[:16]}.json"


def latency_file(prompt_set_sha256: str) -> str:
    """Return the artifact of the latencies, which differ between two evaluations."""
    return f"latencies/{prompt_set_sha256[:16]}.json"


def tag(prompt_set_sha256: str) -> str:
    """Return the name of the mark."""
    return names.of_prompt_set(names.SCORECARD, prompt_set_sha256)


def mark(rows: PromptSet, digest: str, metrics: list[str], config: EvaluateConfig) -> str:
    """Return the value of the mark of a complete scorecard."""
    return json.dumps(
        {"prompt_set_sha256": rows.sha256, "digest": digest, "metrics": sorted(metrics)} | _how_asked(config)
    )


def has_scorecard(variant: Variant, rows: PromptSet, metrics: list[str], config: EvaluateConfig) -> bool:
    """Return True if a variant was asked these rows in this way, and scored with at least these metrics."""
    marked = _mark_of(variant, rows.sha256)
    asked = {"prompt_set_sha256": rows.sha256} | _how_asked(config)
    return all(marked.get(key) == value for key, value in asked.items()) and set(metrics) <= set(marked["metrics"])


def is_scored_at_all(variant: Variant) -> bool:
    """Return True if a variant has a complete scorecard on any prompt set."""
    return any(key.startswith(names.SCORECARD) and json.loads(value) for key, value in variant.tags.items())


def metrics_of(variant: Variant, sha256: str) -> dict[str, float] | None:
    """Return the variant's metrics on these rows, and those that belong to no dataset (size); None if not scored."""
    marked = _mark_of(variant, sha256)
    if marked.get("prompt_set_sha256") != sha256:
        return None
    return {key: value for key, digest, value in variant.metrics if digest in (None, marked["digest"])}


def _how_asked(config: EvaluateConfig) -> dict[str, Any]:
    """Return what decides over answers and scores, in addition to the variant, the rows and the metrics' names."""
    asked: dict[str, Any] = {"seed": config.evaluate.seed, "repeats": config.evaluate.repeats}
    judge = config.evaluate.judge
    return asked | ({"judge": [judge.model, judge.instructions]} if judge.model else {})


def _mark_of(variant: Variant, sha256: str) -> dict[str, Any]:
    marked: dict[str, Any] = json.loads(variant.tags.get(tag(sha256), "{}"))
    return marked


def _artifact(variant: Variant, path: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = load_artifact(variant, path)
    except Exception as error:  # a store, a server or a folder may each lose a file in its own way
        raise StepError(
            f"{path} of {variant.name} (run {variant.run_id}) cannot be read ({type(error).__name__}). "
            f"Score it again: `python -m steps.evaluate run_id={variant.run_id}`."
        ) from error
    return content
