"""Decide whether the best candidate replaces the champion. Pure functions."""

from dataclasses import dataclass

from steps.config.schema import Promotion
from steps.evaluation.statistics import Difference
from steps.promotion.rank import Candidate, Ranking, costs, score, score_difference
from steps.store.names import metric_key

NO_CHAMPION = "there was no champion"


@dataclass(frozen=True)
class Decision:
    """Whether to promote the best candidate.

    Attributes:
        reason: Why, in one sentence without its full stop.
        difference: Candidate minus champion in the policy's metric; None if they were not compared.
    """

    promote: bool
    reason: str
    difference: Difference | None = None


def decide(ranking: Ranking, champion: Candidate | None, promotion: Promotion, vacancy: str = NO_CHAMPION) -> Decision:
    """Promote the best candidate, unless the champion is it, is significantly better, or is as good in every respect.

    Args:
        ranking: At least one ranked candidate.
        champion: The champion as a candidate; None if no champion can be compared.
        promotion: The policy.
        vacancy: Why there is no champion to compare with.
    """
    best = ranking.ranked[0]
    if champion is None:
        return Decision(True, f"{vacancy}; {best.name} has {_why_best(ranking, promotion)}")
    if best.fingerprint == champion.fingerprint:
        return Decision(False, f"the champion {champion.name} is already the best: {_show_score(champion, promotion)}")
    if faults := ranking.refused.get(champion.model_id):
        return Decision(True, f"the champion {champion.name} no longer meets the policy: {', '.join(faults)}")
    gap = score_difference(best, champion, promotion)
    if gap.worse:
        reason = f"{best.name} is significantly worse than the champion {champion.name}: {format_difference(gap)}"
        return Decision(False, reason, gap)
    if champion.model_id in ranking.tied:
        return _decide_by_cost(best, champion, promotion, gap)
    if gap.better:
        why = f"{promotion.metric} {format_difference(gap)}"
    else:
        behind = format_difference(ranking.differences[champion.model_id])
        why = f"it is tied with the highest score, and the champion is not ({behind})"
    return Decision(True, f"{best.name} is better than the champion {champion.name}: {why}", gap)


def format_difference(gap: Difference) -> str:
    """Return a difference with its interval, as people read it."""
    return f"{gap.mean:+.4f}, interval {gap.low:+.4f} to {gap.high:+.4f}"


def _decide_by_cost(best: Candidate, champion: Candidate, promotion: Promotion, gap: Difference) -> Decision:
    """Decide between two that are tied in the metric: the first cost of `prefer` in which they differ counts."""
    tie = f"they are tied in {promotion.metric} ({format_difference(gap)})"
    ours, theirs = costs(best, promotion), costs(champion, promotion)
    for name, our, their in zip(promotion.prefer, ours, theirs, strict=True):
        if our != their:
            values = f"{name} {_show(best, name)} against {_show(champion, name)}"
            return Decision(True, f"{best.name} is better than the champion {champion.name}: {tie}, {values}", gap)
    reason = f"{best.name} is not better than the champion {champion.name}: {tie}, and their costs are equal"
    return Decision(False, reason, gap)


def _why_best(ranking: Ranking, promotion: Promotion) -> str:
    best, others = ranking.ranked[0], len(ranking.tied) - 1
    if not others or not promotion.prefer:
        return f"the highest score, {_show_score(best, promotion)}"
    cost = f"{promotion.prefer[0]} {_show(best, promotion.prefer[0])}"
    return f"{_show_score(best, promotion)}, tied with {others} for the highest score, and the least cost, {cost}"


def _show_score(candidate: Candidate, promotion: Promotion) -> str:
    return f"{promotion.metric} {score(candidate, promotion):.4f}"


def _show(candidate: Candidate, name: str) -> str:
    return f"{candidate.metrics[metric_key(name)]:g}"
