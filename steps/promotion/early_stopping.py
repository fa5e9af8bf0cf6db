"""Stop asking a variant that can no longer win (`evaluate.stop_early=true`).

A rival is completely scored, by the same ruler, and could be promoted: it breaks no limit, and no check of its contract
unless the policy allows that. A variant that is shown to be worse than such a rival by the margin or more cannot win.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from steps.config.schema import EvaluateConfig, Promotion
from steps.errors import StepError
from steps.evaluation import betting, metric_loading, partial, scorecard, scores
from steps.evaluation.answers import Answer
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.ruler import Ruler
from steps.evaluation.scoring import IsBeaten
from steps.output import echo
from steps.promotion.candidate import Candidate
from steps.promotion.candidates import to_candidate
from steps.promotion.costs import broken_checks
from steps.promotion.missing_scorecard import evaluate_command
from steps.promotion.rank import faults_of
from steps.store import runs
from steps.store.names import row_metric
from steps.store.variants import Variant, find_variants

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Field:
    """The rivals of a variant.

    Attributes:
        rows: The prompt set.
        rivals: The variants that it is compared with.
        others: How many other variants there are, with those that are not scored or may not win.
        policy: What decides.
        source: What the policy's metric is loaded from.
    """

    rows: PromptSet
    rivals: list[Candidate]
    others: int
    policy: Promotion
    source: str

    def is_beaten(self, indices: list[int], repeats: list[list[Answer]]) -> bool:
        """Return True if the answers to these rows show that the variant is not within the margin of all others."""
        name = row_metric(self.policy.metric)
        asked = PromptSet(self.rows.name, tuple(self.rows.rows[index] for index in indices))
        computed = scores.compute(metric_loading.load_metrics([self.source]), asked, repeats)[name]
        own = [sum(values) / len(values) for values in zip(*(one.scores or [] for one in computed), strict=True)]
        theirs = [[rival.rows[name][index] for index in indices] for rival in self.rivals]
        if not self.rivals or any(not 0 <= score <= 1 for row in [own, *theirs] for score in row):
            # The bets need bounds.
            return False
        sign = -1 if self.policy.less_is_better else 1
        advantages = [[sign * (one - other) for one, other in zip(own, row, strict=True)] for row in theirs]
        return betting.is_beaten(advantages, self.policy.margin, self.policy.alpha, self.others)


def check(config: EvaluateConfig, ruler: Ruler) -> None:
    """Raise StepError if variants are to be stopped early by a metric that is not computed while they are asked."""
    answered = [name for name in ruler.sources if name not in metric_loading.LIKELIHOODS]
    if config.evaluate.stop_early and row_metric(config.promotion.metric) not in answered:
        raise StepError(
            "evaluate.stop_early compares variants by promotion.metric, which must be one of evaluate.metrics "
            f"({', '.join(answered)}), got '{config.promotion.metric}'."
        )


def decider(
    client: MlflowClient, config: EvaluateConfig, variant: Variant, rows: PromptSet, ruler: Ruler
) -> IsBeaten | None:
    """Return what decides whether a variant is stopped early, as the store is now; None if it is asked all rows."""
    if not config.evaluate.stop_early or config.run_id:
        return None
    policy = config.promotion
    others = [one for one in find_variants(client, runs.experiment_id()) if one.fingerprint != variant.fingerprint]
    scored = [to_candidate(one, rows, policy) for one in others if scorecard.has_scorecard(one, rows, ruler)]
    rivals = [one for one in scored if _may_win(one, policy)]
    number = len({one.fingerprint for one in others})
    return Field(rows, rivals, max(1, number), policy, ruler.sources[row_metric(policy.metric)]).is_beaten


def stays_stopped(config: EvaluateConfig, variant: Variant, rows: PromptSet) -> bool:
    """Return True if a variant was stopped early before, and is not asked in full now."""
    return config.evaluate.stop_early and not config.run_id and bool(partial.mark_of(variant, rows))


def report(config: EvaluateConfig, variant: Variant, rows: PromptSet) -> None:
    """Print that a variant was stopped early, and log it to the active run, the evaluation's."""
    import mlflow

    text = sentence(config, variant, rows)
    echo(text)
    content = {"variant": variant.name, "sentence": text} | partial.mark_of(variant, rows)
    mlflow.log_dict(content, f"stopped_early/{variant.model_id}.json")


def sentence(config: EvaluateConfig, variant: Variant, rows: PromptSet) -> str:
    """Return that a variant was stopped early, and the command that asks the rest."""
    return (
        f"Stopped early: {variant.name} ({variant.uri}): {partial.extent(partial.mark_of(variant, rows))}, and it "
        f"cannot win any more. Ask it the others: `{evaluate_command(config.prompt_set, (), variant.run_id)}`"
    )


def _may_win(candidate: Candidate, policy: Promotion) -> bool:
    if policy.contract_first and broken_checks(candidate):
        return False
    # Its speed is measured later.
    return not faults_of(candidate, replace(policy, prefer=[]))
