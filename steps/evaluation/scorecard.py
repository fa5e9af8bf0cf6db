"""The scorecard of a variant on a prompt set: a mark and metrics on the LoggedModel, and two files of its run.

The mark (a tag) is written last. It says how the variant was asked, by which ruler its answers were scored (ruler.py),
and MLflow's digest of the dataset, which tells the metrics of several prompt sets on one model apart. Reading
aggregates needs no artifact. An older mark without a ruler is read as one of an unknown ruler.
`scorecards/<first 16 of the prompt set's sha256>.json` is the scorecard: the same bytes however often the evaluation
was interrupted. How long the answers took is in `latencies/`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from steps.errors import StepError
from steps.evaluation.metric_loading import REFERENCE
from steps.evaluation.prompt_set import PromptSet
from steps.store import names
from steps.store.variants import Variant, artifact_folder, is_local, load_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from steps.evaluation.ruler import Ruler


# Of a mark: where the answers are from, if they were not generated.
ANSWERS = "answers"
CHOSEN = "chosen"


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


def read_latencies(variant: Variant, sha256: str, rows: int = 0) -> list[float | None]:
    """Return the milliseconds of each row's answer, its share of its batch; None for each of `rows` if lost."""
    try:
        latencies: list[float | None] = _artifact(variant, latency_file(sha256))["latency_ms"]
    except StepError:
        return [None] * rows
    return latencies


def is_stored(client: MlflowClient, variant: Variant, sha256: str) -> bool:
    """Return True if the file of a scorecard is there. A local one is read too; a server's would take too long."""
    path = file(sha256)
    if path not in {entry.path for entry in client.list_artifacts(variant.run_id, path.partition("/")[0])}:
        return False
    if not is_local(artifact_folder(variant)):
        return True
    with contextlib.suppress(StepError, TypeError):
        read(variant, sha256)
        return True
    return False


def place(variant: Variant, sha256: str) -> str:
    """Return where the file of a scorecard belongs, for the user."""
    return f"{artifact_folder(variant)}/{file(sha256)}"


def file(prompt_set_sha256: str) -> str:
    """Return the artifact of a scorecard."""
    return f"scorecards/{prompt_set_sha256[:16]}.json"


def latency_file(prompt_set_sha256: str) -> str:
    """Return the artifact of the latencies, which differ between two evaluations."""
    return f"latencies/{prompt_set_sha256[:16]}.json"


def tag(prompt_set_sha256: str) -> str:
    """Return the name of the mark."""
    return names.of_prompt_set(names.SCORECARD, prompt_set_sha256)


def mark(
    rows: PromptSet, digest: str, asked: dict[str, Any], parts: dict[str, str], sources: dict[str, str] | None = None
) -> str:
    """Return the value of the mark of a complete scorecard.

    Args:
        rows: The prompt set.
        digest: MLflow's digest of it.
        asked: How the variant was asked (`Ruler.asked`, ANSWERS).
        parts: The ruler: a digest for each metric, and for the contract.
        sources: What metrics are loaded from that are not shipped.
    """
    own = {"sources": sources} if sources else {}
    return json.dumps({"prompt_set_sha256": rows.sha256, "digest": digest} | asked | {"ruler": parts} | own)


def has_scorecard(variant: Variant, rows: PromptSet, ruler: Ruler) -> bool:
    """Return True if a variant was asked these rows in this way, and scored by this ruler or more."""
    return is_asked(variant, rows, ruler) and not outdated(parts_of(variant, rows.sha256), ruler.parts(variant))


def is_asked(variant: Variant, rows: PromptSet, ruler: Ruler) -> bool:
    """Return True if a variant has answers to these rows that were asked for in this way, whatever their scores."""
    marked = mark_of(variant, rows.sha256)
    if ruler.generates and marked.get(ANSWERS):
        return False
    asked = {"prompt_set_sha256": rows.sha256} | ruler.asked(variant)
    return all(marked.get(key) == value for key, value in asked.items())


def is_generated(variant: Variant, sha256: str) -> bool:
    """Return False if the answers of a scorecard are the most likely choices of its rows."""
    return ANSWERS not in mark_of(variant, sha256)


def outdated(marked: dict[str, str], parts: dict[str, str]) -> list[str]:
    """Return the parts of a ruler that a scorecard lacks or has of another ruler."""
    return [name for name, digest in parts.items() if marked.get(name) != digest]


def is_comparable(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Return True if two scorecards have no part of different rulers. An unknown ruler is like no other."""
    parts = {name: digest for name, digest in ours.items() if name != REFERENCE}
    return bool(ours) == bool(theirs) and all(theirs.get(name, digest) == digest for name, digest in parts.items())


def parts_of(variant: Variant, sha256: str) -> dict[str, str]:
    """Return the digests of the ruler that a variant's scorecard was made by; empty if it does not say."""
    parts: dict[str, str] = mark_of(variant, sha256).get("ruler", {})
    return parts


def sources_of(variants: Iterable[Variant], sha256: str) -> dict[str, str]:
    """Return what the metrics of scorecards are loaded from that are not shipped, by name."""
    return {name: source for one in variants for name, source in mark_of(one, sha256).get("sources", {}).items()}


def is_scored_at_all(variant: Variant) -> bool:
    """Return True if a variant has a complete scorecard on any prompt set."""
    return any(key.startswith(names.SCORECARD) and json.loads(value) for key, value in variant.tags.items())


def metrics_of(variant: Variant, sha256: str) -> dict[str, float] | None:
    """Return the variant's metrics on these rows, and those that belong to no dataset (size); None if not scored."""
    marked = mark_of(variant, sha256)
    if marked.get("prompt_set_sha256") != sha256:
        return None
    return {key: value for key, digest, value in variant.metrics if digest in (None, marked["digest"])}


def mark_of(variant: Variant, sha256: str) -> dict[str, Any]:
    """Return the mark of a variant's scorecard; empty if it has none, or none that is complete."""
    marked: dict[str, Any] = json.loads(variant.tags.get(tag(sha256), "{}"))
    return marked


def _artifact(variant: Variant, path: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = load_artifact(variant, path)
    except Exception as error:  # a store, a server or a folder may each lose a file in its own way
        raise StepError(
            f"{path} of {variant.name} (run {variant.run_id}) cannot be read from {artifact_folder(variant)} "
            f"({type(error).__name__})."
        ) from error
    return content
