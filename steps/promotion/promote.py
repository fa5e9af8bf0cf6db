"""Promote the best variant, and name the challenger.

With a lock, one round is enough. Without one, others may write at the same time: each register reads again after it
has written, and repairs until there is nothing left to write.
"""

from __future__ import annotations

from dataclasses import dataclass

from steps.errors import StepError
from steps.promotion import gate, registry, report
from steps.promotion.admission import Rejected, ensure_registered, ensure_smoke_tested, set_champion
from steps.promotion.contest import Contest, gather
from steps.promotion.gate import Decision
from steps.promotion.job import Job, broken_model
from steps.promotion.rank import Candidate, Ranking, rank
from steps.promotion.registry import Registry
from steps.store.names import CHALLENGER

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
        """The candidate that the ranking puts first."""
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
        ranking = rank(contest.candidates, job.policy)
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
            decision = gate.decide(ranking, contest.champion, job.policy, contest.vacancy)
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
        assessment = assess(job)
        current = assessment.registry
        if assessment.decision.promote:
            current, promoted = _promote_best(job, assessment), assessment
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
    variant_names = {candidate.model_id: candidate.name for candidate in contest.candidates}
    content = report.as_dict(job, assessment.ranking, variant_names, contest.left_out)
    report.log(content | {"decision": report.decision_dict(decision, contest.champion, assessment.best)}, current)


def _promote_best(job: Job, assessment: Assessment) -> Registry:
    """Register the best candidate, smoke-test it, move the alias; returns the registry afterwards."""
    best, decision = assessment.best, assessment.decision
    version = ensure_registered(job, assessment.registry, best, decision.reason)
    try:
        ensure_smoke_tested(job, version, assessment.contest.variants[best.model_id])
    except Rejected as rejection:
        rejected = Decision(False, str(rejection).rstrip("."), decision.difference)
        log_report(job, assessment, assessment.registry, rejected)
        raise
    set_champion(job, version, best, decision.reason)
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
