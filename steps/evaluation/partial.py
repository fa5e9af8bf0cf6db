"""A variant that was stopped early: what it was asked, and how to ask the rest.

A tag of the variant's run and LoggedModel says how many rows were asked. `partial/<first 16 of the prompt set's
sha256>.json` on the run has the answers, with their names in the journal, so that they are not asked again. Such a
variant has no scorecard: it is compared with nothing. Its page `scorecards/….md` says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.digests import digest
from steps.evaluation import scorecard
from steps.evaluation.answers import Answer, Course
from steps.evaluation.journal import Journal
from steps.evaluation.prompt_set import PromptSet
from steps.store import runs
from steps.store.collisions import retried
from steps.store.names import PARTIAL, of_prompt_set
from steps.store.variants import Variant, load_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient


def log(
    client: MlflowClient,
    variant: Variant,
    rows: PromptSet,
    repeats: list[list[Answer]],
    course: Course,
    entries: Journal,
    key: dict[str, Any],
) -> None:
    """Log the answers so far to the variant's run, and last the tag that says that there are some.

    Args:
        client: The store.
        variant: What was asked.
        rows: The prompt set.
        repeats: The answers of every repeat; those that were not asked are marked.
        course: How the rows were asked.
        entries: The journal with the answers.
        key: What the answers depend on in addition to the questions.
    """
    import mlflow

    answers = {name: entry for name, entry in entries.entries.items() if name.startswith("answer ")}
    asked = [not answer.unasked for answer in repeats[0]]
    mark = {"prompt_set_sha256": rows.sha256, "asked": sum(asked), "rows": len(asked), "key": digest(key)}
    mark |= {"seed": course.seed, "batch_size": course.batch_size}
    table = [
        {"id": row.id, "answers": [repeat[index].text for repeat in repeats] if asked[index] else None}
        for index, row in enumerate(rows.rows)
    ]
    with runs.reopen(variant.run_id):
        mlflow.log_dict(mark | {"table": table, "journal": answers}, file(rows.sha256))
        page = f"# {variant.name}\n\nStopped early on {rows.name}: {extent(mark)}. The others have no score.\n"
        mlflow.log_text(page, str(Path(scorecard.file(rows.sha256)).with_suffix(".md")))
    tag(client, variant, rows, mark)


def tag(client: MlflowClient, variant: Variant, rows: PromptSet, mark: dict[str, Any]) -> None:
    """Write the tag to the run and the LoggedModel; an empty one says that nothing is left to ask."""
    name, value = of_prompt_set(PARTIAL, rows.sha256), json.dumps(mark)
    retried(client.set_tag, variant.run_id, name, value)
    client.set_logged_model_tags(variant.model_id, {name: value})


def mark_of(variant: Variant, rows: PromptSet) -> dict[str, Any]:
    """Return the tag of a variant that was stopped early on these rows; empty if it was not."""
    mark: dict[str, Any] = json.loads(variant.tags.get(of_prompt_set(PARTIAL, rows.sha256), "{}"))
    return mark if mark.get("prompt_set_sha256") == rows.sha256 else {}


def extent(mark: dict[str, Any]) -> str:
    """Return how much of a prompt set was asked, for people."""
    return f"{mark['asked']} of {mark['rows']} rows were asked"


def restore(variant: Variant, rows: PromptSet, key: dict[str, Any], entries: Journal) -> Course | None:
    """Put the answers so far into the journal; return the course that they were asked by.

    Returns:
        None if the variant was not stopped early, or if its answers cannot be used: they are lost, or depended on
        something else.
    """
    mark = mark_of(variant, rows)
    if mark.get("key") != digest(key):
        return None
    try:
        answers = load_artifact(variant, file(rows.sha256))["journal"]
    except Exception:  # a store, a server or a folder may each lose a file in its own way
        return None
    entries.add({name: entry for name, entry in answers.items() if name not in entries.entries})
    return Course(mark["seed"], mark["batch_size"])


def file(prompt_set_sha256: str) -> str:
    """Return the artifact with the answers so far."""
    return f"partial/{prompt_set_sha256[:16]}.json"
