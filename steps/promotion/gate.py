"""Decide whether the best candidate takes the champion's place. Pure functions."""

from dataclasses import dataclass

from steps.config.schema import Promotion
from steps.evaluation.statistics import Difference
from steps.promotion.rank import Candidate, Ranking, compared, costs, metric_key, score


@dataclass(frozen=True)
class Decision:
    """Whether to promote, why in one sentence, and candidate minus champion in the policy's metric."""

    promote: bool
    reason: str
    difference: Difference | None = None


def decide(
    ranking: Ranking, champion: Candidate | None, promotion: Promotion, vacant: str = "there was no champion"
) -> Decision:
    """Promote the best unless the champion is it, is significantly better, or is as good by the whole policy.

    `vacant` says why there is no champion to compare with, where there is none.
    """
    best = ranking.ranked[0]
    if champion is None:
        return Decision(True, f"{vacant}; {best.name} has {_first(ranking, promotion)}")
    if best.fingerprint == champion.fingerprint:
        return Decision(False, f"the champion {champion.name} is the best already: {_score(champion, promotion)}")
    if faults := ranking.refused.get(champion.model_id):
        return Decision(True, f"the champion {champion.name} is beyond the limits: {', '.join(faults)}")
    gap = compared(best, champion, promotion)
    if gap.worse:
        return Decision(
            False, f"{best.name} is significantly worse than the champion {champion.name}: {told(gap)}", gap
        )
    if champion.model_id not in ranking.tied:
        why = f"{promotion.metric} {told(gap)}" if gap.better else _below(champion, ranking)
        return Decision(True, f"{best.name} is better than the champion {champion.name}: {why}", gap)
    return _cheaper(best, champion, promotion, gap)


def _cheaper(best: Candidate, champion: Candidate, promotion: Promotion, gap: Difference) -> Decision:
    """Both are tied in the metric: the first thing of `prefer` in which they differ decides."""
    tie = f"they are tied in {promotion.metric} ({told(gap)})"
    ours, theirs = costs(best, promotion), costs(champion, promotion)
    for name, our, their in zip(promotion.prefer, ours, theirs, strict=True):
        if our != their:
            values = f"{name} {_value(best, name)} against {_value(champion, name)}"
            return Decision(True, f"{best.name} is better than the champion {champion.name}: {tie}, {values}", gap)
    return Decision(False, f"{best.name} is not better than the champion {champion.name}: {tie} and alike beside", gap)


def told(gap: Difference) -> str:
    """A difference with its interval, as people read it."""
    return f"{gap.mean:+.4f}, interval {gap.low:+.4f} to {gap.high:+.4f}"


def _first(ranking: Ranking, promotion: Promotion) -> str:
    """Why the best is the best."""
    others = len(ranking.tied) - 1
    if not others or not promotion.prefer:
        return f"the highest score, {_score(ranking.ranked[0], promotion)}"
    cost = f"{promotion.prefer[0]} {_value(ranking.ranked[0], promotion.prefer[0])}"
    return (
        f"{_score(ranking.ranked[0], promotion)}, tied with {others} for the highest score, and the least cost, {cost}"
    )


def _below(champion: Candidate, ranking: Ranking) -> str:
    return (
        f"it is tied with the highest score, and the champion is not ({told(ranking.differences[champion.model_id])})"
    )


def _score(candidate: Candidate, promotion: Promotion) -> str:
    return f"{promotion.metric} {score(candidate, promotion):.4f}"


def _value(candidate: Candidate, name: str) -> str:
    return f"{candidate.metrics[metric_key(name)]:g}"
