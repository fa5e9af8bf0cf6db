"""Make an earlier version champion again: the previous champion, or `version`.

The same checks apply as for a promotion: the model must be intact, meet the policy's limits on this prompt set, and
pass the smoke test if it has not yet. A lower score alone is no obstacle. The version that is replaced is tagged as
rejected, because the next register would promote it again.
"""

from dataclasses import replace

from steps.config.schema import Promotion, RegisterConfig
from steps.errors import StepError
from steps.evaluation import scorecard
from steps.output import echo
from steps.promotion import candidates, history, lock, registry, report, rulers, standing
from steps.promotion.admission import ensure_smoke_tested, set_champion
from steps.promotion.candidate import Candidate
from steps.promotion.gate import Decision
from steps.promotion.history import Change
from steps.promotion.job import Job, broken_model
from steps.promotion.missing_scorecard import find_missing
from steps.promotion.rank import Ranking, faults_of
from steps.promotion.registry import Registry, Version
from steps.promotion.self_contained import make_self_contained
from steps.promotion.verdicts import against_one
from steps.store import runs
from steps.store.collisions import retried
from steps.store.commands import step_command
from steps.store.connection import safe_tracking_uri
from steps.store.names import CHALLENGER, FINISHED_BY, REJECTED
from steps.store.variants import Variant, find_variants, lost_run, read_variant


def rollback(job: Job) -> None:
    """Roll back, or with `dry_run` only report the version to roll back to."""
    if job.config.dry_run:
        current = registry.read(job.client, job.name)
        target = _choose_target(current, job.config)
        _variant_of(job, current, target)
        echo(f"Dry run: would roll back to version {target.number}.")
        return
    with lock.held(job.name, job.policy.lock_seconds), runs.start(f"rollback-{job.name}"):
        current = registry.read(job.client, job.name)
        unreported = _unreported(job, current) if job.config.version is None else None
        if unreported:
            _finish(job, current, unreported)
        else:
            _roll_back(job, current, _choose_target(current, job.config))


def _roll_back(job: Job, current: Registry, target: Version) -> None:
    """Move the alias from the champion to the target, and log the report."""
    replaced = current.champion
    if replaced is None:
        raise StepError(f"{job.name} has no champion, so there is nothing to roll back.")
    variant = _variant_of(job, current, target)
    if faults := job.faults(variant):
        raise StepError(f"{broken_model(variant, faults)}.")
    candidate = _comparable(job, variant, target)
    if faults := faults_of(candidate, _policy(job, variant)):
        raise StepError(f"Cannot roll back to version {target.number} ({variant.name}): {', '.join(faults)}.")
    make_self_contained(job.client, variant)
    ensure_smoke_tested(job, target, variant)
    reason = f"rolled back from version {replaced.number} on request"
    # Before the alias moves: after a kill in between, the same command continues.
    retried(
        job.client.set_model_version_tag, job.name, replaced.number, REJECTED, f"rolled back to version {target.number}"
    )
    set_champion(job, target, candidate, reason)
    _report(job, target, candidate, replaced, reason)
    echo(f"Rolled back to {variant.name}: {job.name}@champion is version {target.number}, no longer {replaced.number}.")


def _unreported(job: Job, current: Registry) -> Change | None:
    """Return the last change if it is a rollback that was killed after it moved the alias and before its report."""
    changes = history.changes(current)
    if not changes or changes[-1].action != "rollback":
        return None
    run = job.client.get_run(changes[-1].run_id)
    return None if run.info.status == "FINISHED" or FINISHED_BY in run.data.tags else changes[-1]


def _finish(job: Job, current: Registry, change: Change) -> None:
    """Report the rollback that a killed run has made, instead of rolling back once more."""
    target = current.version(change.version)
    if target is None:
        raise StepError(f"Version {change.version} of {job.name} was deleted after the rollback to it.")
    variant = _variant_of(job, current, target)
    _report(job, target, _comparable(job, variant, target), current.version(change.replaced), change.reason)
    retried(job.client.set_tag, change.run_id, FINISHED_BY, runs.active_run_id())
    echo(
        f"The rollback to version {target.number} ({variant.name}) was killed after it was made. "
        "Its report is finished now."
    )


def _choose_target(current: Registry, config: RegisterConfig) -> Version:
    """Return the version to roll back to; raises StepError if there is none."""
    champion = current.champion
    if champion is None:
        raise StepError(f"{current.name} has no champion, so there is nothing to roll back.")
    if config.version is None:
        number = history.previous_champion(history.changes(current))
        if number is None or current.version(number) is None:
            raise StepError(f"No version was champion before version {champion.number}. Give one: -P version=…")
    else:
        number = str(config.version)
    target = current.version(number)
    if target is None:
        numbers = ", ".join(version.number for version in current.versions)
        raise StepError(f"version must be a version of {current.name} ({numbers}), got {number}.")
    if target == champion:
        raise StepError(f"Version {number} is the champion already.")
    if target.rejected and config.version is None and not config.promotion.retry_rejected:
        raise StepError(
            f"Version {number}, the previous champion, was rejected: {target.rejected}. "
            f"To roll back to it nevertheless, give its number: -P version={number}."
        )
    return target


def _variant_of(job: Job, current: Registry, target: Version) -> Variant:
    """Return the variant of the version to roll back to; raises StepError if its model was deleted."""
    if variant := candidates.find_variant(job.client, target.model_id):
        return variant
    others = [
        version.number
        for version in current.versions
        if version not in (target, current.champion) and candidates.find_variant(job.client, version.model_id)
    ]
    overrides = ["action=rollback", f"registered_model={job.name}"]
    remedy = (
        f"Choose another version: `{step_command('register', *overrides, f'version={others[-1]}')}`"
        if others
        else "No other version has its model either."
    )
    raise StepError(
        f"Cannot roll back to version {target.number} of {job.name}: its model {target.model_id} was deleted from "
        f"{safe_tracking_uri()}. {remedy}"
    )


def _comparable(job: Job, variant: Variant, target: Version) -> Candidate:
    """Return the target as a candidate; raises StepError if its scorecard is missing or cannot be used."""
    candidate = candidates.scored_candidate(job, variant)
    role = f"version {target.number} of {job.name}"
    policy = _policy(job, variant)
    missing = find_missing(variant, candidate, role, job.config.prompt_set, job.rows.name, policy)
    if missing and (lost := lost_run(job.client, variant)):
        raise StepError(f"{variant.name} is {role} and {missing.problem}, and cannot be scored: {lost}.")
    if missing or candidate is None:
        # Other variants may say where a metric of the user's own is.
        others = find_variants(job.client, runs.experiment_id())
        known = replace(missing, sources=scorecard.sources_of(others, job.rows.sha256)) if missing else None
        raise StepError(known.sentence if known else f"{variant.name} has no scorecard on {job.rows.name}.")
    return candidate


def _policy(job: Job, variant: Variant) -> Promotion:
    """Return the policy without costs that nobody was timed for."""
    return candidates.measured_policy(job, [*find_variants(job.client, runs.experiment_id()), variant])


def _report(job: Job, target: Version, candidate: Candidate, replaced: Version | None, reason: str) -> None:
    """Take the alias `challenger` from the new champion, and log the report: target against replaced version."""
    current = registry.read(job.client, job.name)
    if current.challenger == target:
        registry.set_alias(job.client, current, CHALLENGER, None)
    opponent = _replaced_candidate(job, replaced, target, candidate)
    policy = _policy(job, read_variant(job.client, candidate.model_id))
    verdict = against_one([candidate], opponent, policy)[candidate.model_id] if opponent else None
    content = report.as_dict(job, policy, Ranking([candidate], {}, candidate), {}, [])
    gap = verdict.difference if verdict else None
    decision = report.decision_dict(Decision(True, reason, verdict, gap), opponent, candidate)
    current = registry.read(job.client, job.name)
    report.log(content | {"decision": decision}, current)
    standing.mark(job.client, current, {replaced.model_id: "rolled back from"} if replaced else {}, None)
    standing.describe(job.client, current, reason)


def _replaced_candidate(job: Job, replaced: Version | None, target: Version, ours: Candidate) -> Candidate | None:
    """Return the replaced version as a candidate; None if it is gone, or cannot be compared on these rows."""
    variant = candidates.find_variant(job.client, replaced.model_id) if replaced else None
    candidate = candidates.scored_candidate(job, variant) if variant else None
    if variant is None or candidate is None or faults_of(candidate, replace(job.policy, limits={}, prefer=[])):
        return None
    pairs = [(read_variant(job.client, target.model_id), ours), (variant, candidate)]
    return candidate if rulers.are_comparable(job, pairs) else None
