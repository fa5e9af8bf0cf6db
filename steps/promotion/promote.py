"""Promote the best variant, and name the challenger.

A version that fails the smoke test is rejected, and the next best takes its place until one passes.

With a lock, one round is enough. Without one, others may write at the same time: each register reads again after it
has written, and repairs until there is nothing left to write.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from steps.errors import StepError
from steps.output import echo
from steps.promotion import gate, mlflow_verdict, registry, report
from steps.promotion.admission import Rejected, ensure_registered, ensure_smoke_tested, set_champion
from steps.promotion.candidate import Candidate
from steps.promotion.contest import Contest, gather
from steps.promotion.gate import Decision
from steps.promotion.job import Job, broken_model
from steps.promotion.rank import Ranking, rank
from steps.promotion.registry import Registry
from steps.store.names import CHALLENGER, VERDICT

# Without a lock: how often to read again before giving up.
ROUNDS = 10


@dataclass(frozen=True)
class Assessment:
    """A decision, with everything that it rests on, read at one moment."""

    registry: Registry
    contest: Contest
    ranking: Ranking
    decision: Decision

    @property
    def best(self) -> Candidate:
        """Return the candidate that the ranking puts first."""
        return self.ranking.ranked[0]


def assess(job: Job) -> Assessment:
    """Read the registry and the candidates, rank them, and decide.

    The files of the best candidate are checked. If they are broken, the next candidate takes its place.

    Raises:
        StepError: No candidate can be promoted.
    """
    current = registry.read(job.client, job.name)
    while True:
        contest = gather(job, current)
        ranking = rank(contest.candidates, contest.policy, contest.champion.model_id if contest.champion else None)
        if not ranking.ranked:
            refused = [
                f"{contest.candidate(model_id).name}: {', '.join(faults)}."
                for model_id, faults in ranking.refused.items()
            ]
            broken = [
                f"{broken_model(variant, faults)}."
                for variant in contest.variants.values()
                if (faults := job.integrity.known_faults(variant))
            ]
            raise StepError("No variant meets the promotion limits:", *refused, *broken)
        if not job.faults(contest.variants[ranking.ranked[0].model_id]):
            decision = gate.decide(ranking, contest.champion, contest.policy, contest.vacancy, contest.reference)
            return Assessment(current, contest, ranking, decision)


def settle(job: Job, locked: bool) -> tuple[Assessment, Registry]:
    """Promote the best candidate and name the challenger.

    Args:
        job: The active register.
        locked: Whether this process holds the lock.

    Returns:
        The assessment that was acted on, or the last one if there was nothing to do; the registry afterwards.

    Raises:
        StepError: Other processes kept changing the registry.
    """
    promoted = None
    for _ in range(ROUNDS):
        assessment, current = _promote_next_best(job)
        promoted = assessment if assessment.decision.promote else promoted
        wrote = _name_challenger(job, assessment, current) or assessment.decision.promote
        if locked or not wrote:
            current = registry.read(job.client, job.name) if wrote else current
            # Without a lock, a better candidate may have replaced it since.
            if promoted and current.champion and current.champion.model_id == promoted.best.model_id:
                return promoted, current
            return assessment, current
    raise StepError(
        f"Other processes kept changing {job.name}, so nothing was settled in {ROUNDS} rounds. "
        "Run register again when they have ended."
    )


def log_report(job: Job, assessment: Assessment, current: Registry, decision: Decision) -> None:
    """Log the report of a promotion to the active run."""
    contest = assessment.contest
    counts = Counter(candidate.name for candidate in contest.candidates)
    # Two variants may have the same name: part of the model id tells them apart.
    variant_names = {
        candidate.model_id: f"{candidate.name} {candidate.model_id[2:8]}"
        if counts[candidate.name] > 1
        else candidate.name
        for candidate in contest.candidates
    }
    content = report.as_dict(job, contest.policy, assessment.ranking, variant_names, contest.left_out)
    content["rejected"] = list(job.rejected.values())
    content["reference"] = report.reference_dict(contest.reference, job.rows)
    report.log(content | {"decision": report.decision_dict(decision, contest.champion, assessment.best)}, current)
    mlflow_verdict.log(job.client, decision, contest.policy, assessment.best, contest.champion, contest.variants)


def _promote_next_best(job: Job) -> tuple[Assessment, Registry]:
    """Promote the best candidate that passes the smoke test, if any is to be promoted.

    Returns:
        The assessment that was acted on; the registry afterwards.

    Raises:
        StepError: Every candidate was rejected, and there is no champion.
    """
    rejected: Assessment | None = None
    while True:
        try:
            assessment = assess(job)
        except StepError:
            if rejected:
                reason = f"no candidate is left: {'; '.join(job.rejected.values())}"
                log_report(job, rejected, rejected.registry, replace(rejected.decision, promote=False, reason=reason))
            raise
        if not assessment.decision.promote:
            return assessment, assessment.registry
        try:
            return assessment, _promote_best(job, assessment)
        except Rejected as rejection:
            echo(f"{rejection} Going on with the next best.")
            rejected = assessment


def _promote_best(job: Job, assessment: Assessment) -> Registry:
    """Register the best candidate, smoke-test it, move the alias; returns the registry afterwards."""
    best, decision, contest = assessment.best, assessment.decision, assessment.contest
    version = ensure_registered(job, assessment.registry, best, decision.reason)
    try:
        ensure_smoke_tested(job, version, contest.variants[best.model_id])
    except Rejected as rejection:
        job.rejected[best.fingerprint] = f"{best.name} (version {version.number}) was rejected: {rejection.reason}"
        raise
    verdict = {VERDICT: decision.verdict.word} if decision.verdict else {}
    reference = contest.reference.tag(best, job.rows, contest.policy)
    set_champion(job, version, best, decision.reason, verdict | reference)
    return registry.read(job.client, job.name)


def _name_challenger(job: Job, assessment: Assessment, current: Registry) -> bool:
    """Let the alias `challenger` name the best candidate that is not champion; returns whether that was a change."""
    champion, version = current.champion, None
    for candidate in assessment.ranking.ranked if champion else []:
        if champion is None or candidate.model_id == champion.model_id:
            continue
        variant = assessment.contest.variants[candidate.model_id]
        if not current.of_model(candidate.model_id) and (faults := job.faults(variant)):
            assessment.contest.left_out.append(broken_model(variant, faults))
            continue
        reason = f"the best candidate after the champion (version {champion.number})"
        version = ensure_registered(job, current, candidate, reason)
        break
    return registry.set_alias(job.client, current, CHALLENGER, version)
