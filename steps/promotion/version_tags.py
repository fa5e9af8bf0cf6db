"""What a registered version says about itself: a few tags to read and search by, and all of it as a description."""

from steps.promotion.candidate import Candidate
from steps.promotion.job import Job
from steps.store import names, runs
from steps.store.environment import git_commit
from steps.store.names import metric_key


def version_tags(job: Job, candidate: Candidate, reason: str) -> dict[str, str]:
    """Return the tags of a version that people read: why it was registered, and its scores."""
    means = {key: value for key, value in sorted(candidate.metrics.items()) if key.endswith("/mean")}
    asked = map(metric_key, [job.policy.metric, *job.policy.prefer])
    scores = means | {key: candidate.metrics[key] for key in asked if key in candidate.metrics}
    return {
        names.REASON: reason,
        names.SCORES: ", ".join(f"{key}={value:.6g}" for key, value in scores.items()),
    }


def version_description(job: Job, candidate: Candidate, tags: dict[str, str], replaced: str | None) -> str:
    """Return the tags, and where they come from, as Markdown.

    Args:
        job: The active register.
        candidate: The version's variant.
        tags: Those of `version_tags`.
        replaced: The version that was champion before.
    """
    return (
        f"**{candidate.name}**: {tags[names.REASON]}.\n\n"
        f"- scores: {tags[names.SCORES]}\n"
        f"- prompt set: {job.rows.name}, sha256 `{job.rows.sha256}`\n"
        f"- fingerprint: `{candidate.fingerprint}`\n"
        f"- policy {job.policy.name}, run `{runs.active_run_id()}`, git commit `{git_commit() or 'none'}`, "
        f"replaced version: {replaced or 'none'}\n"
    )
