"""What a registered version says about itself: the same facts as tags and as a description."""

from steps.promotion.candidate import Candidate
from steps.promotion.job import Job
from steps.store import names, runs
from steps.store.environment import git_commit
from steps.store.names import metric_key


def version_tags(job: Job, candidate: Candidate, replaced: str | None, reason: str) -> dict[str, str]:
    """Return the tags of a version: why it was registered, its scores, and where they come from.

    Args:
        job: The active register.
        candidate: The version's variant.
        replaced: The version that was champion before.
        reason: One sentence without its full stop.
    """
    means = {key: value for key, value in sorted(candidate.metrics.items()) if key.endswith("/mean")}
    asked = map(metric_key, [job.policy.metric, *job.policy.prefer])
    scores = means | {key: candidate.metrics[key] for key in asked if key in candidate.metrics}
    return {
        names.REASON: reason,
        names.POLICY: job.policy.name,
        names.SCORES: ", ".join(f"{key}={value:.6g}" for key, value in scores.items()),
        names.PROMPT_SET_SHA256: job.rows.sha256,
        names.REPLACED_VERSION: replaced or "none",
        names.RUN_ID: runs.active_run_id(),
        names.GIT_COMMIT: git_commit() or "none",
    }


def version_description(candidate: Candidate, tags: dict[str, str]) -> str:
    """Return the tags as Markdown."""
    return (
        f"**{candidate.name}**: {tags[names.REASON]}.\n\n"
        f"- scores: {tags[names.SCORES]}\n"
        f"- prompt set: sha256 `{tags[names.PROMPT_SET_SHA256]}`\n"
        f"- fingerprint: `{candidate.fingerprint}`\n"
        f"- policy {tags[names.POLICY]}, run `{tags[names.RUN_ID]}`, git commit `{tags[names.GIT_COMMIT]}`, "
        f"replaced version: {tags[names.REPLACED_VERSION]}\n"
    )
