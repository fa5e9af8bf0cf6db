"""Promote the best variant: register its model and give it the alias `champion`. Or show the history, or roll back.

    python -m steps.register dry_run=true
    mlflow run . -e register -P promotion.metric=chrf
    mlflow run . -e register -P action=history
    mlflow run . -e register -P action=rollback

Reads conf/register.yaml and the scorecards of the experiment's variants. Writes a registered version with its tags and
description, the aliases, and promotion.md and promotion.json on its own run. Whenever it is killed, the alias names a
version that is intact and smoke-tested, and the next start finishes the job.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steps import command_line
from steps.config.schema import RegisterConfig
from steps.evaluation import prompt_set
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report.leaderboard import Standing
from steps.output import echo
from steps.promotion import history, lock, registry, rollback, standing
from steps.promotion.gate import Decision
from steps.promotion.incumbent import missing_scorecards
from steps.promotion.job import Job
from steps.promotion.promote import Assessment, assess, log_report, settle
from steps.promotion.rank import Ranking
from steps.promotion.registry import Registry
from steps.store import runs, shared_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Outcome", "check_name", "missing_scorecards", "register"]


@dataclass(frozen=True)
class Outcome:
    """What a promotion decided and did.

    Attributes:
        version: The champion's version afterwards; None in a dry run of the first promotion.
        champion_model_id: The champion's model afterwards.
    """

    ranking: Ranking
    decision: Decision
    version: str | None
    champion_model_id: str | None
    metric: str
    less_is_better: bool = False

    @property
    def standing(self) -> Standing:
        """Return the order of the candidates, how each compares, and the champion with the reason."""
        return Standing(
            [candidate.model_id for candidate in self.ranking.ranked],
            self.champion_model_id,
            self.version,
            standing.words(self.ranking, self.metric),
            self.metric,
            self.less_is_better,
            self.decision.reason,
        )


def register(
    config: RegisterConfig, rows: PromptSet | None = None, model_ids: Collection[str] | None = None
) -> Outcome | None:
    """Promote the best variant, or do what `action` names instead.

    Args:
        config: What to do.
        rows: The prompt set, if it is loaded already.
        model_ids: The LoggedModels that compete, in addition to the champion; None for all of the experiment.

    Returns:
        The outcome of a promotion; None after another action.

    Raises:
        StepError: There is no candidate, or the champion has no scorecard that the policy can use.
    """
    import mlflow

    client = mlflow.MlflowClient()
    if config.action == "history":
        lines = history.lines(registry.read(client, config.registered_model))
        for line in lines or [f"{config.registered_model} has had no champion yet."]:
            echo(line)
        return None
    only = None if model_ids is None else frozenset(model_ids)
    job = Job(client, config, rows or prompt_set.load(config.prompt_set), only)
    if config.action == "rollback":
        rollback.rollback(job)
        return None
    return _preview(job) if config.dry_run else _promote(job)


def check_name(client: MlflowClient, config: RegisterConfig) -> None:
    """Raise StepError if nothing can be promoted under the name: it is a prompt's, or its champion is not ours."""
    _ = registry.read(client, config.registered_model).champion


def _preview(job: Job) -> Outcome:
    """Decide, and change nothing."""
    assessment = assess(job)
    verdict = f"would promote {assessment.best.name}" if assessment.decision.promote else "nothing would change"
    echo(f"Dry run: {verdict}: {assessment.decision.reason}.")
    return _outcome(job, assessment, assessment.registry)


def _promote(job: Job) -> Outcome:
    """Decide, promote, name the challenger, and report. If the registry has a lock, one register runs at a time."""
    with lock.held(job.name, job.policy.lock_seconds) as locked, runs.start(f"register-{job.name}"):
        assessment, current = settle(job, locked)
        log_report(job, assessment, current, assessment.decision)
        standing.mark(job.client, current, standing.words(assessment.ranking, job.policy.metric))
        # If nothing changes, the page keeps the reason of the promotion.
        if assessment.decision.promote:
            standing.describe(job.client, current, assessment.decision.reason)
    shared_weights.delete_unused(job.client, runs.experiment_id())
    outcome = _outcome(job, assessment, current)
    promoted = f"Promoted {assessment.best.name} to {job.name}@champion (version {outcome.version})"
    echo(f"{promoted if assessment.decision.promote else 'Nothing changes'}: {assessment.decision.reason}.")
    for model_id, faults in assessment.ranking.refused.items():
        echo(f"Refused: {assessment.contest.candidate(model_id).name}: {', '.join(faults)}.")
    for sentence in assessment.contest.left_out:
        echo(f"Left out: {sentence}.")
    return outcome


def _outcome(job: Job, assessment: Assessment, current: Registry) -> Outcome:
    champion = current.champion
    return Outcome(
        assessment.ranking,
        assessment.decision,
        champion.number if champion else None,
        champion.model_id if champion else assessment.best.model_id,
        job.policy.metric,
        job.policy.less_is_better,
    )


def main() -> None:
    """Run the step from the command line."""
    command_line.run("register", register)


if __name__ == "__main__":
    main()
