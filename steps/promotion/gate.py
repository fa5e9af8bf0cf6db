"""Decide whether the best candidate replaces the champion. Pure functions.

It does if it is superior to the champion, or if it is non-inferior and cheaper. In the second case it must also be
non-inferior to every other candidate and to the reference, the best score that a champion ever had on this prompt set:
otherwise ten promotions, each within the margin, could lose ten margins.
"""

from dataclasses import dataclass

from steps.config.schema import Promotion
from steps.evaluation.statistics import Difference
from steps.promotion.candidate import Candidate, score
from steps.promotion.costs import deciding_cost
from steps.promotion.rank import Ranking
from steps.promotion.reference import NO_REFERENCE, Reference
from steps.promotion.verdicts import INFERIOR, SUPERIOR, UNDECIDED, Verdict, against_one, needed_rows
from steps.store.names import metric_key, with_unit

NO_CHAMPION = "there was no champion"


@dataclass(frozen=True)
class Decision:
    """Whether to promote the best candidate.

    Attributes:
        reason: Why, in one sentence without its full stop.
        verdict: How the candidate compares with the champion; None if they were not compared.
        difference: Candidate minus champion in the policy's metric; None if they were not compared.
    """

    promote: bool
    reason: str
    verdict: Verdict | None = None
    difference: Difference | None = None


def decide(
    ranking: Ranking,
    champion: Candidate | None,
    promotion: Promotion,
    vacancy: str = NO_CHAMPION,
    reference: Reference = NO_REFERENCE,
) -> Decision:
    """Promote the best candidate, if it is superior to the champion, or non-inferior and cheaper.

    Args:
        ranking: At least one ranked candidate.
        champion: The champion as a candidate; None if no champion can be compared.
        promotion: The policy.
        vacancy: Why there is no champion to compare with.
        reference: The best score of a champion.
    """
    best = ranking.ranked[0]
    if champion is None:
        return Decision(True, f"{vacancy}; {best.name} has {_why_best(ranking, promotion)}")
    if best.fingerprint == champion.fingerprint:
        return Decision(False, f"the champion {champion.name} is already the best: {_show_score(champion, promotion)}")
    if faults := ranking.refused.get(champion.model_id):
        return Decision(True, f"the champion {champion.name} no longer meets the policy: {', '.join(faults)}")
    challengers = [candidate for candidate in ranking.ranked if candidate.model_id != champion.model_id]
    verdict = against_one(challengers, champion, promotion)[best.model_id]
    promote, why = _compare(best, champion, verdict, promotion)
    if promote and verdict.word != SUPERIOR and (fault := _loss_fault(ranking, challengers, promotion, reference)):
        promote, why = False, f"{why}, but {fault}"
    reason = f"{best.name} is {_relation(verdict)} the champion {champion.name}: {why}"
    return Decision(promote, reason, verdict, verdict.difference)


def format_difference(gap: Difference) -> str:
    """Return a difference with its interval, as people read it."""
    return f"{gap.mean:+.4f}, interval {gap.low:+.4f} to {gap.high:+.4f}"


def _compare(best: Candidate, champion: Candidate, verdict: Verdict, promotion: Promotion) -> tuple[bool, str]:
    """Return whether the best candidate may replace the champion, and why."""
    gap = f"{promotion.metric} {format_difference(verdict.difference)}"
    if verdict.word == SUPERIOR:
        return True, gap
    if verdict.word == INFERIOR:
        return False, gap
    if verdict.word == UNDECIDED:
        return False, f"{gap}; {needed_rows(verdict, promotion)}"
    decided = deciding_cost(best, champion, promotion)
    if decided is None:
        return False, f"{gap}, and it is not cheaper"
    name, cheaper = decided
    values = f"{name} {_show(best, name)} against {_show(champion, name)}"
    return cheaper, f"{gap}, and {'cheaper' if cheaper else 'dearer'}: {values}"


def _loss_fault(
    ranking: Ranking, challengers: list[Candidate], promotion: Promotion, reference: Reference
) -> str | None:
    """Return to what the best candidate is not shown to be non-inferior: another candidate, or the reference.

    The champion may be worse than another candidate, which is not shown to be superior yet.
    """
    best = ranking.ranked[0]
    if not ranking.verdicts[best.model_id].acceptable:
        return "it is not shown to be non-inferior to all other candidates"
    return reference.fault(best, challengers, promotion)


def _relation(verdict: Verdict) -> str:
    return {UNDECIDED: "undecided against"}.get(verdict.word, f"{verdict.word} to")


def _why_best(ranking: Ranking, promotion: Promotion) -> str:
    best, highest = ranking.ranked[0], ranking.highest
    if highest is None or best is highest:
        equal = sum(score(one, promotion) == score(best, promotion) for one in ranking.ranked) - 1
        extreme = "lowest" if promotion.less_is_better else "highest"
        shared = f", like {equal} more, and is the better made or the cheaper of them" if equal else ""
        return f"the {extreme} score, {_show_score(best, promotion)}{shared}{_undecided(ranking, promotion)}"
    decided = deciding_cost(best, highest, promotion)
    cost = f": {decided[0]} {_show(best, decided[0])} against {_show(highest, decided[0])}" if decided else ""
    return f"{_show_score(best, promotion)}, is non-inferior to {highest.name} and cheaper{cost}"


def _undecided(ranking: Ranking, promotion: Promotion) -> str:
    """Return that the rows do not show the best candidate to be the best, if that is so."""
    verdict = ranking.verdicts.get(ranking.ranked[0].model_id)
    if verdict is None or verdict.word != UNDECIDED:
        return ""
    return f" (undecided against {verdict.rival}: {needed_rows(verdict, promotion)})"


def _show_score(candidate: Candidate, promotion: Promotion) -> str:
    return f"{promotion.metric} {score(candidate, promotion):.4f}"


def _show(candidate: Candidate, name: str) -> str:
    key = metric_key(name)
    return with_unit(key, candidate.metrics[key])
