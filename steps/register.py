"""Promote the best variant: register its model and give it the alias `champion`.

    python -m steps.register dry_run=true
    mlflow run . -e register -P promotion.metric=chrf

Reads conf/register.yaml and the scorecards of the experiment's variants; writes a registered version, its
tags and description, the alias, and the decision on its own run.
"""

from dataclasses import dataclass
from typing import Any

from steps import cli, tracking
from steps.errors import StepError
from steps.evaluation import prompt_set, scorecard
from steps.evaluation.prompt_set import PromptSet
from steps.promotion import gate, registry
from steps.promotion.gate import Decision
from steps.promotion.rank import Candidate, Ranking, metric_key, missing_metrics, rank
from steps.promotion.registry import Champion
from steps.schema import RegisterConfig
from steps.tracking import Variant

SCORE_ONE = "Score them with `mlflow run . -e evaluate` (or `python -m steps.evaluate`)."
BUILD_ONE = "Make one with `mlflow run . -e build` (or `python -m steps.build`)."


@dataclass(frozen=True)
class Outcome:
    """What register found and did: the champion now is `version` of the registered model."""

    ranking: Ranking
    decision: Decision
    version: str | None
    champion_model_id: str | None


def register(config: RegisterConfig) -> Outcome:
    """Rank, decide, and unless `dry_run` promote."""
    import mlflow

    rows = prompt_set.load(config.prompt_set)
    client = mlflow.MlflowClient()
    champion = registry.champion(client, config.registered_model)
    candidates = _candidates(rows, tracking.variants(client, tracking.experiment_id()), champion)
    if faults := missing_metrics(candidates, config.promotion):
        raise StepError(*faults)
    ranking = rank(candidates, config.promotion)
    if not ranking.ranked:
        raise StepError("No variant is within the limits of the promotion policy:", *_violations(candidates, ranking))
    best = ranking.ranked[0]
    decision = gate.decide(best, _candidate_of(champion, candidates), config.promotion, ranking)
    now = best.model_id if decision.promote else champion.variant.model_id
    if config.dry_run:
        verdict = f"would promote {best.name}" if decision.promote else "nothing would change"
        tracking.say(f"Dry run: {verdict}: {decision.reason}.")
        return Outcome(ranking, decision, champion.version if champion else None, now)
    version = champion.version if champion else None
    with tracking.run(f"register-{config.registered_model}"):
        if decision.promote:
            version = _promote(client, config, rows, best, champion, decision)
        mlflow.log_dict(_report(config, candidates, ranking, decision, version), "promotion.json")
        mlflow.set_tags({"phi3.promoted": str(decision.promote).lower(), "phi3.reason": decision.reason})
    done = f"Promoted {best.name} to {config.registered_model}@champion (version {version})"
    tracking.say(f"{done if decision.promote else 'Nothing changes'}: {decision.reason}.")
    return Outcome(ranking, decision, version, now)


def _candidates(rows: PromptSet, variants: list[Variant], champion: Champion | None) -> list[Candidate]:
    """Every variant with a scorecard on these rows, the champion too if it is of another experiment."""
    if champion and champion.variant.model_id not in {variant.model_id for variant in variants}:
        variants = [champion.variant, *variants]
    if not variants:
        raise StepError(f"There is no variant to register in this experiment. {BUILD_ONE}")
    candidates = [
        Candidate(variant.name, variant.model_id, variant.tags[tracking.FINGERPRINT], metrics)
        for variant in variants
        if (metrics := scorecard.scores(variant, rows.sha256)) is not None
    ]
    if not candidates:
        raise StepError(f"No variant has a scorecard for {rows.name}. {SCORE_ONE}")
    return candidates


def _candidate_of(champion: Champion | None, candidates: list[Candidate]) -> Candidate | None:
    """The champion as a candidate; it must have been scored on the same rows."""
    if champion is None:
        return None
    for candidate in candidates:
        if candidate.model_id == champion.variant.model_id:
            return candidate
    raise StepError(
        f"The champion {champion.variant.name} (version {champion.version}) has no scorecard for this prompt set, "
        f"so nothing can be compared with it. Score it: `python -m steps.evaluate run_id={champion.variant.run_id}`."
    )


def _promote(
    client: Any, config: RegisterConfig, rows: PromptSet, best: Candidate, champion: Champion | None, decision: Decision
) -> str:
    metric = metric_key(config.promotion.metric)
    tags = {
        tracking.FINGERPRINT: best.fingerprint,
        "phi3.reason": decision.reason,
        "phi3.policy": config.promotion.name,
        "phi3.metric": f"{metric}={best.metrics[metric]:g}",
        "phi3.prompt_set_sha256": rows.sha256,
        "phi3.replaced_version": champion.version if champion else "none",
        "phi3.git_commit": tracking.git_commit() or "none",
    }
    return registry.promote(client, config.registered_model, best, tags, f"{best.name}: {decision.reason}.")


def _report(
    config: RegisterConfig, candidates: list[Candidate], ranking: Ranking, decision: Decision, version: str | None
) -> dict[str, Any]:
    return {
        "policy": config.promotion.name,
        "metric": config.promotion.metric,
        "promoted": decision.promote,
        "reason": decision.reason,
        "champion_version": version,
        "ranking": [candidate.name for candidate in ranking.ranked],
        "violations": _violations(candidates, ranking),
        "metrics": {candidate.model_id: {"name": candidate.name} | candidate.metrics for candidate in candidates},
    }


def _violations(candidates: list[Candidate], ranking: Ranking) -> list[str]:
    names = {candidate.model_id: candidate.name for candidate in candidates}
    return [f"{names[model_id]}: {', '.join(faults)}." for model_id, faults in ranking.violations.items()]


def main() -> None:
    """Run the step from the command line."""
    cli.run("register", register)


if __name__ == "__main__":
    main()
