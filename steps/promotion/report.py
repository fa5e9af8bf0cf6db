"""The promotion report: `promotion.json` and `promotion.md` on the run, and the essence on the registered version."""

from typing import Any

from steps.config.schema import Promotion, RegisterConfig
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.statistics import interval
from steps.promotion.gate import Decision
from steps.promotion.rank import Candidate, Ranking, metric_key, row_metric, score
from steps.promotion.registry import CHALLENGER, CHAMPION, Registry
from steps.store.environment import git_commit


def as_dict(
    config: RegisterConfig, rows: PromptSet, ranking: Ranking, names: dict[str, str], left_out: list[str]
) -> dict[str, Any]:
    """The policy, the ranking with its ties, and who was refused and why; `names` by model id."""
    return {
        "action": config.action,
        "registered_model": config.registered_model,
        "prompt_set": {"name": rows.name, "sha256": rows.sha256, "rows": len(rows.rows)},
        "policy": _policy(config.promotion),
        "ranking": [_row(place, entry, ranking, config.promotion) for place, entry in enumerate(ranking.ranked, 1)],
        "refused": {names[model_id]: faults for model_id, faults in ranking.refused.items()},
        "left_out": left_out,
    }


def decision_dict(decision: Decision, champion: Candidate | None, candidate: Candidate) -> dict[str, Any]:
    """Champion against candidate, with the interval of the difference, and what was decided."""
    gap = decision.difference
    return {
        "candidate": candidate.name,
        "champion": champion.name if champion else None,
        "difference": {"mean": gap.mean, "low": gap.low, "high": gap.high} if gap else None,
        "promoted": decision.promote,
        "reason": decision.reason,
    }


def log(content: dict[str, Any], now: Registry) -> None:
    """Write the report to the active run, with what the aliases name now."""
    import mlflow

    aliases = {f"{alias}_version": now.aliases.get(alias) for alias in (CHAMPION, CHALLENGER)}
    content |= aliases | {"next": next_commands(now.name)}
    mlflow.log_dict(content, "promotion.json")
    mlflow.log_text(markdown(content), "promotion.md")
    decided = content["decision"]
    mlflow.set_tags(
        {
            "phi3.action": content["action"],
            "phi3.promoted": str(decided["promoted"]).lower(),
            "phi3.reason": decided["reason"],
            "phi3.champion_version": content["champion_version"] or "none",
        }
    )


def markdown(content: dict[str, Any]) -> str:
    """The report as people read it."""
    policy, decided = content["policy"], content["decision"]
    gap = decided["difference"]
    versus = f" Candidate minus champion: {_told(gap)}." if gap else ""
    lines = [
        f"# {content['registered_model']}: {decided['reason']}",
        "",
        f"{'Done' if decided['promoted'] else 'Nothing changes'}: the champion is version "
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
    """How to go on."""
    return [
        f"mlflow models serve -m models:/{registered_model}@champion --env-manager uv --port 5001",
        f"mlflow run . -e register -P registered_model={registered_model} -P action=history",
        f"mlflow run . -e register -P registered_model={registered_model} -P action=rollback",
    ]


def essence(
    candidate: Candidate, config: RegisterConfig, rows: PromptSet, replaced: str | None, reason: str, run_id: str
) -> dict[str, str]:
    """What a registered version says of itself, as tags."""
    means = {key: value for key, value in sorted(candidate.metrics.items()) if key.endswith("/mean")}
    asked = [config.promotion.metric, *config.promotion.prefer]
    shown = means | {metric_key(name): candidate.metrics[metric_key(name)] for name in asked}
    return {
        "phi3.reason": reason,
        "phi3.policy": config.promotion.name,
        "phi3.scores": ", ".join(f"{key}={value:.6g}" for key, value in shown.items()),
        "phi3.prompt_set_sha256": rows.sha256,
        "phi3.replaced_version": replaced or "none",
        "phi3.run_id": run_id,
        "phi3.git_commit": git_commit() or "none",
    }


def description(candidate: Candidate, tags: dict[str, str]) -> str:
    """The same for people, as Markdown."""
    return (
        f"**{candidate.name}**: {tags['phi3.reason']}.\n\n"
        f"- scores: {tags['phi3.scores']}\n"
        f"- prompt set: sha256 `{tags['phi3.prompt_set_sha256']}`\n"
        f"- fingerprint: `{candidate.fingerprint}`\n"
        f"- policy {tags['phi3.policy']}, run `{tags['phi3.run_id']}`, git commit `{tags['phi3.git_commit']}`, "
        f"replaced version: {tags['phi3.replaced_version']}\n"
    )


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
            _told(row["below_highest"]),
            "yes" if row["tied"] else "no",
            *[f"{row['costs'][name]:g}" for name in prefer],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _told(gap: dict[str, float]) -> str:
    return f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
