"""Let an alias name a version: register a model once, smoke-test it, make it the champion.

A version that has passed the smoke test is not tested again. One that failed is tagged `phi3.rejected` with the reason,
and does not compete again until the user asks for it (`promotion.retry_rejected=true`, or a rollback to its number).
"""

from steps.errors import StepError
from steps.evaluation import scorecard
from steps.output import activity, echo
from steps.promotion import history, registry, smoke
from steps.promotion.candidate import Candidate
from steps.promotion.job import Job
from steps.promotion.registry import Registry, Version
from steps.promotion.self_contained import make_self_contained
from steps.promotion.serving import NotServed
from steps.promotion.version_tags import version_description, version_tags
from steps.store import runs
from steps.store.collisions import retried
from steps.store.names import CHAMPION, REJECTED, SMOKE
from steps.store.variants import Variant, read_variant


class Rejected(StepError):
    """The version failed the smoke test, and is tagged as rejected."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def ensure_registered(job: Job, current: Registry, candidate: Candidate, reason: str) -> Version:
    """Return the version of a candidate, registering it if it has none. Its model has all of its files then."""
    make_self_contained(job.client, read_variant(job.client, candidate.model_id))
    if version := registry.remove_duplicates(job.client, current, candidate.model_id):
        return version
    tags = version_tags(job, candidate, reason)
    return registry.create(job.client, current, candidate, tags, version_description(job, candidate, tags, None))


def ensure_smoke_tested(job: Job, version: Version, variant: Variant) -> None:
    """Smoke-test a version that has not passed yet or is rejected.

    Raises:
        Rejected: It failed.
        StepError: It could not be served. That says nothing about the version.
    """
    number = version.number
    if job.policy.smoke and (SMOKE not in version.tags or version.rejected):
        echo(f"Smoke test of {job.name} version {number} ({variant.name}): serving it …")
        card = scorecard.read(variant, job.rows.sha256)
        try:
            with activity(f"smoke test of version {number}: serving it and asking it"):
                fault = smoke.find_fault(f"models:/{job.name}/{number}", variant, job.rows, card, job.policy)
        except NotServed as error:
            raise StepError(
                f"{variant.name} (version {number} of {job.name}) could not be smoke-tested: {error}. The version is "
                "not rejected, and the champion stays. Fix that, and run the same command again."
            ) from error
        if fault:
            reason = f"smoke test: {fault}"
            retried(job.client.set_model_version_tag, job.name, number, REJECTED, reason)
            raise Rejected(
                f"{variant.name} (version {number} of {job.name}) is rejected: {reason}. "
                "The next register leaves it out; promotion.retry_rejected=true gives it another chance.",
                reason,
            )
        retried(job.client.set_model_version_tag, job.name, number, SMOKE, f"passed {job.rows.sha256[:16]}")
    if version.rejected:
        job.client.delete_model_version_tag(job.name, number, REJECTED)


def set_champion(
    job: Job, version: Version, candidate: Candidate, reason: str, more_tags: dict[str, str] | None = None
) -> None:
    """Write the change to the version's tags, then move the alias. That one write makes it the champion."""
    # Read again: without a lock, another process may have changed the champion.
    current = registry.read(job.client, job.name)
    replaced = current.champion.number if current.champion else None
    tags = version_tags(job, candidate, reason)
    change = history.change_tag(job.config.action, replaced, reason, runs.active_run_id())
    every_tag = tags | change | (more_tags or {})
    description = version_description(job, candidate, tags, replaced)
    registry.describe(job.client, current, version, every_tag, description)
    registry.set_alias(job.client, current, CHAMPION, version)
