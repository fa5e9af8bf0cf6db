"""The promotion report on a register run: `promotion.json`, `promotion.md`, and the run's tags."""

from typing import Any

from steps.config.schema import Promotion
from steps.evaluation.statistics import interval
from steps.promotion.gate import Decision
from steps.promotion.job import Job
from steps.promotion.rank import Candidate, Ranking, score
from steps.promotion.registry import Registry
from steps.store import names
from steps.store.names import metric_key, row_metric


def as_dict(job: Job, ranking: Ranking, variant_names: dict[str, str], left_out: list[str]) -> dict[str, Any]:
    """Return the policy, the ranking, and why the other variants were refused or left out.

    Args:
        job: The active register.
        ranking: The candidates in order.
        variant_names: The names of the candidates, by model id.
        left_out: A sentence for each variant that did not compete.
    """
    return {
        "action": job.config.action,
        "registered_model": job.name,
        "prompt_set": {"name": job.rows.name, "sha256": job.rows.sha256, "rows": len(job.rows.rows)},
        "policy": _policy(job.policy),
        "ranking": [_row(place, candidate, ranking, job.policy) for place, candidate in enumerate(ranking.ranked, 1)],
        "refused": {variant_names[model_id]: faults for model_id, faults in ranking.refused.items()},
        "left_out": left_out,
    }


def decision_dict(decision: Decision, champion: Candidate | None, candidate: Candidate) -> dict[str, Any]:
    """Return the decision, with the champion and the candidate that were compared and their difference."""
    gap = decision.difference
    return {
        "candidate": candidate.name,
        "champion": champion.name if champion else None,
        "difference": {"mean": gap.mean, "low": gap.low, "high": gap.high} if gap else None,
        "promoted": decision.promote,
        "reason": decision.reason,
    }


def log(content: dict[str, Any], registry: Registry) -> None:
    """Log the report to the active run, with the versions that the aliases name in `registry`."""
    import mlflow

    aliases = {f"{alias}_version": registry.aliases.get(alias) for alias in (names.CHAMPION, names.CHALLENGER)}
    content |= aliases | {"next": next_commands(registry.name)}
    mlflow.log_dict(content, "promotion.json")
    mlflow.log_text(markdown(content), "promotion.md")
    decision = content["decision"]
    mlflow.set_tags(
        {
            names.ACTION: content["action"],
            names.PROMOTED: str(decision["promoted"]).lower(),
            names.REASON: decision["reason"],
            names.CHAMPION_VERSION: content["champion_version"] or "none",
        }
    )


def markdown(content: dict[str, Any]) -> str:
    """Return the report as people read it."""
    policy, decision = content["policy"], content["decision"]
    gap = decision["difference"]
    versus = f" Candidate minus champion: {_show_difference(gap)}." if gap else ""
    lines = [
        f"# {content['registered_model']}: {decision['reason']}",
        "",
        f"{'Done' if decision['promoted'] else 'Nothing changes'}: the champion is version "
        f"{content['champion_version'] or 'none'}, the challenger version {content['challenger_version'] or 'none'}."
        f"{versus}",
        "",
        f"Prompt set {content['prompt_set']['name']}: {content['prompt_set']['rows']} rows, "
        f"sha256 `{content['prompt_set']['sha256']}`. Policy {policy['name']}: {policy['metric']} at alpha "
        f"{policy['alpha']:g}, then {', '.join(policy['prefer']) or 'nothing else'}; "
        f"limits {policy['limits'] or 'none'}.",
        "",
        *_table(content),
        "",
        *[f"- {name} is refused: {', '.join(faults)}" for name, faults in content["refused"].items()],
        *[f"- {sentence}" for sentence in content["left_out"]],
        "",
        "Next:",
        "",
        *[f"    {command}" for command in content["next"]],
    ]
    return "\n".join(lines) + "\n"


def next_commands(registered_model: str) -> list[str]:
    """Return the commands to go on with: serve, history, rollback."""
    return [
        f"mlflow models serve -m models:/{registered_model}@{names.CHAMPION} --env-manager uv --port 5001",
        f"mlflow run . -e register -P registered_model={registered_model} -P action=history",
        f"mlflow run . -e register -P registered_model={registered_model} -P action=rollback",
    ]


def _policy(promotion: Promotion) -> dict[str, Any]:
    return {
        "name": promotion.name,
        "metric": promotion.metric,
        "alpha": promotion.alpha,
        "limits": promotion.limits,
        "prefer": promotion.prefer,
    }


def _row(place: int, candidate: Candidate, ranking: Ranking, promotion: Promotion) -> dict[str, Any]:
    low, high = interval(candidate.rows[row_metric(promotion.metric)], promotion.alpha)
    gap = ranking.differences[candidate.model_id]
    return {
        "place": place,
        "variant": candidate.name,
        "model_id": candidate.model_id,
        "score": score(candidate, promotion),
        "interval": [low, high],
        "below_highest": {"mean": gap.mean, "low": gap.low, "high": gap.high},
        "tied": candidate.model_id in ranking.tied,
        "costs": {name: candidate.metrics[metric_key(name)] for name in promotion.prefer},
        "metrics": candidate.metrics,
    }


def _table(content: dict[str, Any]) -> list[str]:
    prefer, metric = content["policy"]["prefer"], content["policy"]["metric"]
    heads = ["", "variant", metric, "interval", "against the highest", "tied", *prefer]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in content["ranking"]:
        cells = [
            str(row["place"]),
            row["variant"],
            f"{row['score']:.4f}",
            f"{row['interval'][0]:.4f} to {row['interval'][1]:.4f}",
            _show_difference(row["below_highest"]),
            "yes" if row["tied"] else "no",
            *[f"{row['costs'][name]:g}" for name in prefer],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _show_difference(gap: dict[str, float]) -> str:
    return f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
