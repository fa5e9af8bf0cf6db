"""Decide whether the best candidate takes the champion's place. Pure functions."""

from dataclasses import dataclass

from steps.promotion.rank import Candidate, Ranking, metric_key, sort_key
from steps.schema import Promotion


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why, in one sentence."""

    promote: bool
    reason: str


def decide(best: Candidate, champion: Candidate | None, promotion: Promotion, ranking: Ranking) -> Decision:
    """Promote the best candidate unless the champion is it, or as good by the policy."""
    if champion is None:
        return Decision(True, f"there was no champion; {_score(best, promotion)} is the best of this prompt set")
    if best.fingerprint == champion.fingerprint:
        return Decision(False, f"the champion {champion.name} is the best already: {_score(champion, promotion)}")
    if faults := ranking.violations.get(champion.model_id):
        return Decision(True, f"the champion {champion.name} is beyond the limits: {', '.join(faults)}")
    better = sort_key(best, promotion) < sort_key(champion, promotion)
    verdict = "is better than" if better else "is not better than"
    return Decision(
        better, f"{best.name} {verdict} the champion {champion.name}: {_difference(best, champion, promotion)}"
    )


def _score(candidate: Candidate, promotion: Promotion) -> str:
    return f"{promotion.metric} {candidate.metrics[metric_key(promotion.metric)]:.4f}"


def _difference(best: Candidate, champion: Candidate, promotion: Promotion) -> str:
    """The first thing of the policy in which they differ."""
    for name in (promotion.metric, *promotion.prefer):
        ours, theirs = best.metrics[metric_key(name)], champion.metrics[metric_key(name)]
        if ours != theirs:
            return f"{name} {ours:g} against {theirs:g}"
    return "they are alike in all that the policy asks"
