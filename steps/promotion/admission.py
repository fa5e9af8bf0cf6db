"""Who may be named by an alias: a model that is whole, registered once, and for `champion` one that was smoked.

A version that passed the smoke test is not smoked again; one that failed is tagged `phi3.rejected` with the reason, and
does not take part again until it is asked for (`promotion.retry_rejected=true`, or a rollback to it by number).
"""

from dataclasses import dataclass, field
from typing import Any

from steps.config.schema import RegisterConfig
from steps.errors import StepError
from steps.evaluation import scorecard
from steps.evaluation.prompt_set import PromptSet
from steps.output import echo
from steps.promotion import history, registry, report, smoke
from steps.promotion.rank import Candidate
from steps.promotion.registry import CHAMPION, REJECTED, SMOKE, Registry, Version
from steps.store import integrity
from steps.store.variants import Variant


@dataclass(frozen=True)
class Job:
    """One register: what it works with, and the run that it logs to."""

    client: Any
    config: RegisterConfig
    rows: PromptSet
    run_id: str
    checked: dict[str, list[str]] = field(default_factory=dict)  # by model id, as `faults` has found them


class Rejected(StepError):
    """The version failed the smoke test and was tagged so."""


def faults(client: Any, variant: Variant, checked: dict[str, list[str]]) -> list[str]:
    """What is wrong with a variant's files, nothing if it is whole; `checked` spares reading them again."""
    if variant.model_id not in checked:
        checked[variant.model_id] = integrity.verify(client, variant)
    return checked[variant.model_id]


def refusal(variant: Variant, found: list[str]) -> str:
    """Say that a model is not what `build` logged, and what to do."""
    return (
        f"{variant.name} ({variant.uri}) is refused: {', '.join(found)}. Build and evaluate it again, or delete "
        f"it: `python -c \"import mlflow; mlflow.MlflowClient().delete_logged_model('{variant.model_id}')\"`."
    )


def refuse_unless_whole(client: Any, variant: Variant, checked: dict[str, list[str]]) -> None:
    """Raise StepError where a model is not what `build` logged: nothing of it is loaded or registered."""
    if found := faults(client, variant, checked):
        raise StepError(refusal(variant, found))


def registered(job: Job, known: Registry, candidate: Candidate, reason: str) -> Version:
    """The version of a candidate, registered now if it is not yet."""
    if found := registry.only_one(job.client, known, candidate.model_id):
        return found
    tags = report.essence(candidate, job.config, job.rows, None, reason, job.run_id)
    return registry.create(job.client, known, candidate, tags, report.description(candidate, tags))


def admit(job: Job, known: Registry, version: Version, variant: Variant) -> None:
    """Smoke a version that was not yet, or was rejected; raises Rejected, and tags it so, if it fails."""
    promotion = job.config.promotion
    name, number = known.name, version.number
    if promotion.smoke and (SMOKE not in version.tags or version.rejected):
        echo(f"Smoke test of {name} version {number} ({variant.name}): serving it …")
        card = scorecard.read(variant, job.rows.sha256)
        try:
            found = smoke.fault(f"models:/{name}/{number}", variant, job.rows, card, promotion)
        except smoke.NotServed as error:
            raise StepError(
                f"{variant.name} (version {number} of {name}) could not be smoked: {error}. Nothing is said against "
                "it, and the champion stays: mend that, and run the same command again."
            ) from error
        if found:
            reason = f"smoke test: {found}"
            job.client.set_model_version_tag(name, number, REJECTED, reason)
            raise Rejected(
                f"{variant.name} (version {number} of {name}) is rejected: {reason}. The champion stays. "
                "The next register goes on without it; promotion.retry_rejected=true tries it again."
            )
        job.client.set_model_version_tag(name, number, SMOKE, f"passed {job.rows.sha256[:16]}")
    if version.rejected:
        job.client.delete_model_version_tag(name, number, REJECTED)


def crown(job: Job, known: Registry, version: Version, candidate: Candidate, reason: str) -> None:
    """Write the change on the version, then move the alias: that one write makes it the champion."""
    # As it is now: without a lock another may have been made champion since.
    known = registry.read(job.client, known.name)
    replaced = known.champion.number if known.champion else None
    tags = report.essence(candidate, job.config, job.rows, replaced, reason, job.run_id)
    registry.describe(
        job.client,
        known,
        version,
        tags | history.tag(job.config.action, replaced, reason, job.run_id),
        report.description(candidate, tags),
    )
    registry.point(job.client, known, CHAMPION, version)
