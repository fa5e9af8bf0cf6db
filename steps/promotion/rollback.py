"""Make an earlier version champion again: to the one before, or to `version`.

It is gated as a promotion is: the model must be whole, keep the policy's limits on this prompt set, and pass the smoke
test if it has not yet; only that it scores less is no reason. The version that is left is tagged rejected, or the next
register would promote it again.
"""

from dataclasses import replace
from typing import Any

from steps.config.schema import RegisterConfig
from steps.errors import StepError
from steps.evaluation import prompt_set, scorecard
from steps.output import echo
from steps.promotion import candidates, history, lock, registry, report
from steps.promotion.admission import Job, admit, crown, refuse_unless_whole
from steps.promotion.gate import Decision
from steps.promotion.history import Change
from steps.promotion.rank import Candidate, Ranking, compared, faults_of
from steps.promotion.registry import CHALLENGER, REJECTED, Registry, Version
from steps.store import runs
from steps.store.variants import Variant, as_variant

# A tag of a rollback's run that was killed: the run that told what it had made.
TOLD = "phi3.told_by"


def rollback(client: Any, config: RegisterConfig) -> None:
    """Move the alias back, with the same checks and records as a promotion."""
    rows = prompt_set.load(config.prompt_set)
    if config.dry_run:
        target = _target(registry.read(client, config.registered_model), config)
        echo(f"Dry run: would roll back to version {target.number}.")
        return
    with (
        lock.held(config.registered_model, config.promotion.lock_seconds),
        runs.start(f"rollback-{config.registered_model}") as active,
    ):
        _rollback(Job(client, config, rows, active.info.run_id))


def _rollback(job: Job) -> None:
    now = registry.read(job.client, job.config.registered_model)
    if job.config.version is None and (made := _unreported(job, now)):
        return _finish(job, now, made)
    left, target = now.champion, _target(now, job.config)
    variant = as_variant(job.client.get_logged_model(target.model_id))
    refuse_unless_whole(job.client, variant, job.checked)
    known = _known(job, variant)
    variant, candidate = candidates.comparable(job.client, variant, known, job.rows, job.config, job.checked)
    if faults := faults_of(candidate, job.config.promotion):
        raise StepError(f"Version {target.number} ({variant.name}) cannot be gone back to: {', '.join(faults)}.")
    admit(job, now, target, variant)
    reason = f"rolled back from version {left.number} as it was asked for"
    # Before the alias moves: killed in between, the same command goes on.
    job.client.set_model_version_tag(now.name, left.number, REJECTED, f"rolled back to version {target.number}")
    crown(job, now, target, candidate, reason)
    _report(job, target, candidate, left, reason)
    echo(f"Rolled back to {variant.name}: {now.name}@champion is version {target.number}, not {left.number}.")


def _unreported(job: Job, now: Registry) -> Change | None:
    """The last change, if it is a rollback whose run was killed: the alias has moved, and nobody was told."""
    *_, last = [None, *history.changes(now)]
    if last is None or last.action != "rollback":
        return None
    run = job.client.get_run(last.run_id)
    return None if run.info.status == "FINISHED" or TOLD in run.data.tags else last


def _finish(job: Job, now: Registry, made: Change) -> None:
    """Report a rollback that a killed run has made, instead of going back once more."""
    target, left = now.numbered(made.version), now.numbered(made.replaced)
    variant = as_variant(job.client.get_logged_model(target.model_id))
    known = _known(job, variant)
    variant, candidate = candidates.comparable(job.client, variant, known, job.rows, job.config, job.checked)
    _report(job, target, candidate, left, made.reason)
    job.client.set_tag(made.run_id, TOLD, job.run_id)
    echo(f"The rollback to version {target.number} ({variant.name}) was killed after it was made: now it is told.")


def _report(job: Job, target: Version, candidate: Candidate, left: Version | None, reason: str) -> None:
    """Take the challenger's alias from the new champion, and log the report."""
    now = registry.read(job.client, job.config.registered_model)
    if now.challenger == target:
        registry.point(job.client, now, CHALLENGER, None)
    _log(job, candidate, _left(job, left), reason)


def _target(known: Registry, config: RegisterConfig) -> Version:
    """The version to go back to; raises StepError where there is none."""
    champion, numbers = known.champion, [version.number for version in known.versions]
    if champion is None:
        raise StepError(f"{known.name} has no champion, so there is nothing to roll back.")
    if config.version is None:
        number = history.before(history.changes(known))
        if number is None or known.numbered(number) is None:
            raise StepError(f"No version was champion before version {champion.number}. Give one: -P version=…")
    else:
        number = str(config.version)
    found = known.numbered(number)
    if found is None:
        raise StepError(f"version must be a version of {known.name} ({', '.join(numbers)}), got {number}.")
    if found == champion:
        raise StepError(f"Version {number} is the champion already.")
    if found.rejected and config.version is None and not config.promotion.retry_rejected:
        raise StepError(
            f"Version {number}, the one before, was rejected: {found.rejected}. "
            f"To go back to it nevertheless give it by number: -P version={number}."
        )
    return found


def _left(job: Job, left: Version | None) -> Candidate | None:
    """The version that is left as a candidate; None where it is gone, or cannot be compared on these rows."""
    from mlflow.exceptions import MlflowException

    try:
        known = _known(job, as_variant(job.client.get_logged_model(left.model_id))) if left else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if known is None or faults_of(known, replace(job.config.promotion, limits={})) else known


def _known(job: Job, variant: Variant) -> Candidate | None:
    """A variant as a candidate; None where it was not scored on these rows."""
    if scorecard.scores(variant, job.rows.sha256) is None:
        return None
    return candidates.candidate(variant, job.rows, job.config.promotion)


def _log(job: Job, candidate: Candidate, left: Candidate | None, reason: str) -> None:
    """The report: the version that was gone back to against the one that was left."""
    promotion = job.config.promotion
    gap = compared(candidate, left, promotion) if left else None
    differences = {candidate.model_id: compared(candidate, candidate, promotion)}
    ranking = Ranking([candidate], {}, (candidate.model_id,), differences)
    content = report.as_dict(job.config, job.rows, ranking, {}, [])
    decision = report.decision_dict(Decision(True, reason, gap), left, candidate)
    report.log(content | {"decision": decision}, registry.read(job.client, job.config.registered_model))
