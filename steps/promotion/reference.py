"""The reference: the best score that a champion ever had on a prompt set. Pure functions.

Each version's tag keeps it, so that it outlives the versions and models that it came from.
"""

import json
from dataclasses import dataclass

from steps.config.schema import Promotion
from steps.evaluation.prompt_set import PromptSet
from steps.promotion.candidate import Candidate, merit
from steps.promotion.registry import Version
from steps.promotion.verdicts import against_one
from steps.store.names import REFERENCE, metric_key


@dataclass(frozen=True)
class Reference:
    """The best score of a champion on the prompt set.

    Attributes:
        score: The score; None if no champion has one on these rows.
        name: The variant that had it.
        candidate: The same as a candidate; None if its rows can no longer be read, so that nothing can be paired.
        model_id: Its LoggedModel, if there is no candidate; "" if it is not known.
        unscored: The rows have changed and the reference has to be asked the new ones: how. None if there is none such.
    """

    score: float | None = None
    name: str = ""
    candidate: Candidate | None = None
    model_id: str = ""
    unscored: str | None = None

    def fault(self, best: Candidate, challengers: list[Candidate], promotion: Promotion) -> str | None:
        """Return why a candidate may not replace the champion by its cost; None if it may.

        Args:
            best: The candidate.
            challengers: All candidates but the champion, for whose number the bound is corrected.
            promotion: The policy.
        """
        if self.unscored or self.score is None:
            return self.unscored
        reference = f"the reference, {promotion.metric} {self.score:.4f} of {self.name}"
        if self.candidate is None:
            # Without rows there is nothing to pair: the scores themselves must be within the margin.
            lost = (self.score - best.metrics[metric_key(promotion.metric)]) * (-1 if promotion.less_is_better else 1)
            return f"it is {lost:.4f} worse than {reference}" if lost >= promotion.margin else None
        if self.candidate.model_id == best.model_id:
            return None
        others = [one for one in challengers if one.model_id != self.candidate.model_id]
        if against_one(others, self.candidate, promotion)[best.model_id].acceptable:
            return None
        return f"it is not shown to be non-inferior to {reference}"

    def tag(self, champion: Candidate, rows: PromptSet, promotion: Promotion) -> dict[str, str]:
        """Return the tag of a version that becomes champion: the better of the reference and itself."""
        own = champion.metrics[metric_key(promotion.metric)]
        better = self.score is None or merit(champion, promotion) >= (
            -self.score if promotion.less_is_better else self.score
        )
        value, name = (own, champion.name) if better else (self.score, self.name)
        ours = self.candidate.model_id if self.candidate else self.model_id
        content = {
            "metric": promotion.metric,
            "prompt_set": rows.name,
            "prompt_set_sha256": rows.sha256,
            "score": value,
            "variant": name,
            "model_id": champion.model_id if better else ours,
        }
        return {REFERENCE: json.dumps(content)}


NO_REFERENCE = Reference()


def choose(champions: list[Candidate], versions: tuple[Version, ...], sha256: str, promotion: Promotion) -> Reference:
    """Return the reference.

    Args:
        champions: The champions of any time that have a scorecard on the prompt set.
        versions: All versions, with their tags.
        sha256: The prompt set's.
        promotion: The policy.
    """
    sign = -1 if promotion.less_is_better else 1
    best = max(champions, key=lambda one: merit(one, promotion), default=None)
    reference = NO_REFERENCE
    if best:
        reference = Reference(best.metrics[metric_key(promotion.metric)], best.name, best)
    for version in versions:
        tag = json.loads(version.tags.get(REFERENCE, "{}"))
        ours = tag.get("prompt_set_sha256") == sha256 and tag.get("metric") == promotion.metric
        if ours and (reference.score is None or sign * tag["score"] > sign * reference.score + 1e-9):
            reference = Reference(tag["score"], tag["variant"], model_id=tag.get("model_id", ""))
    return reference


def before_change(versions: tuple[Version, ...], rows: PromptSet, promotion: Promotion) -> str | None:
    """Return the LoggedModel that was the reference on earlier rows of a prompt set; None if there was none.

    Args:
        versions: All versions, oldest first, with their tags.
        rows: The prompt set as it is now.
        promotion: The policy.
    """
    for version in reversed(versions):
        tag = json.loads(version.tags.get(REFERENCE, "{}"))
        same = tag.get("prompt_set") == rows.name and tag.get("metric") == promotion.metric
        if same and tag["prompt_set_sha256"] != rows.sha256:
            return str(tag["model_id"]) or None
    return None
