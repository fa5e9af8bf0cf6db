"""The promotion report on a register run: `promotion.json`, `promotion.md`, and the run's tags."""

from typing import Any

from steps.config.schema import Promotion
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.statistics import Difference, interval
from steps.promotion.candidate import Candidate, score
from steps.promotion.gate import Decision
from steps.promotion.job import Job
from steps.promotion.rank import Ranking
from steps.promotion.reference import Reference
from steps.promotion.registry import Registry
from steps.promotion.verdicts import needed_rows
from steps.store import names
from steps.store.commands import serve_command, step_command
from steps.store.names import metric_key, row_metric


def as_dict(
    job: Job, promotion: Promotion, ranking: Ranking, variant_names: dict[str, str], left_out: list[str]
) -> dict[str, Any]:
    """Return the policy, the ranking, and why the other variants were refused or left out.

    Args:
        job: The active register.
        promotion: The policy that was applied.
        ranking: The candidates in order.
        variant_names: The names of the candidates, by model id.
        left_out: A sentence for each variant that did not compete.
    """
    return {
        "action": job.config.action,
        "registered_model": job.name,
        "prompt_set": {"name": job.rows.name, "sha256": job.rows.sha256, "rows": len(job.rows.rows)},
        "policy": _policy(promotion, job.policy),
        "ranking": [_row(place, candidate, ranking, promotion) for place, candidate in enumerate(ranking.ranked, 1)],
        "refused": {variant_names[model_id]: faults for model_id, faults in ranking.refused.items()},
        "left_out": left_out,
    }


def decision_dict(decision: Decision, champion: Candidate | None, candidate: Candidate) -> dict[str, Any]:
    """Return the decision, with the champion and the candidate that were compared and their difference."""
    verdict = decision.verdict
    return {
        "candidate": candidate.name,
        "champion": champion.name if champion else None,
        "verdict": verdict.word if verdict else None,
        "at_worst": verdict.at_worst if verdict else None,
        "rows_needed": verdict.rows_needed if verdict else None,
        "difference": _numbers(decision.difference),
        "promoted": decision.promote,
        "reason": decision.reason,
    }


def reference_dict(reference: Reference, rows: PromptSet) -> dict[str, Any]:
    """Return the reference, and in `note` what people should know about it."""
    if reference.score is None:
        note = f"no champion so far has a score on these rows of {rows.name}, so nothing can be held against one"
    elif reference.candidate is None:
        note = "its rows can no longer be read, so only the scores are compared, not row by row"
    else:
        note = "compared row by row"
    return {"score": reference.score, "variant": reference.name or None, "note": note}


def log(content: dict[str, Any], registry: Registry) -> None:
    """Log the report to the active run, with the versions that the aliases name in `registry`."""
    import mlflow

    aliases = {f"{alias}_version": registry.aliases.get(alias) for alias in (names.CHAMPION, names.CHALLENGER)}
    content |= aliases | {"next": next_commands(registry.name)}
    mlflow.log_dict(content, "promotion.json")
    text = markdown(content)
    mlflow.log_text(text, "promotion.md")
    mlflow.set_tag(names.NOTE, text)
    decision = content["decision"]
    mlflow.set_tags(
        {
            names.ACTION: content["action"],
            names.PROMOTED: str(decision["promoted"]).lower(),
            names.REASON: decision["reason"],
            names.CHAMPION_VERSION: content["champion_version"] or "none",
        }
        | ({names.VERDICT: decision["verdict"]} if decision["verdict"] else {})
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
        f"sha256 `{content['prompt_set']['sha256']}`. Policy {policy['name']}: {policy['metric']}"
        f"{' (less is better)' if policy['direction'] == 'lower' else ''} with margin {policy['margin']:g} at alpha "
        f"{policy['alpha']:g}, then {', '.join(policy['prefer']) or 'nothing else'}; "
        f"limits {policy['limits'] or 'none'}."
        f"{' Not measured, so not compared: ' + ', '.join(policy['unmeasured']) + '.' if policy['unmeasured'] else ''}",
        "",
        *_table(content),
        "",
        "The intervals of the scores hold for all of these variants at once, so also for the one that was chosen as "
        "the best of them. A difference has its own interval; the verdict counts all comparisons.",
        "",
        *_reference_lines(content),
        *[f"- {name} is refused: {', '.join(faults)}" for name, faults in content["refused"].items()],
        *[f"- {sentence}" for sentence in dict.fromkeys([*content.get("rejected", []), *content["left_out"]])],
        "",
        "Next:",
        "",
        *[f"    {command}" for command in content["next"]],
    ]
    return "\n".join(lines) + "\n"


def next_commands(registered_model: str) -> list[str]:
    """Return the commands to go on with: serve, history, rollback."""
    register = [f"registered_model={registered_model}"]
    return [
        serve_command(f"models:/{registered_model}@{names.CHAMPION}"),
        step_command("register", *register, "action=history"),
        step_command("register", *register, "action=rollback"),
    ]


def _policy(promotion: Promotion, configured: Promotion) -> dict[str, Any]:
    return {
        "name": promotion.name,
        "metric": promotion.metric,
        "direction": promotion.direction,
        "margin": promotion.margin,
        "alpha": promotion.alpha,
        "contract_first": promotion.contract_first,
        "timed_tolerance": promotion.timed_tolerance,
        "size_tolerance": promotion.size_tolerance,
        "unmeasured": [name for name in configured.prefer if name not in promotion.prefer],
        "limits": promotion.limits,
        "prefer": promotion.prefer,
    }


def _row(place: int, candidate: Candidate, ranking: Ranking, promotion: Promotion) -> dict[str, Any]:
    # Divided by their number, the intervals hold for all candidates at once, so also for the one that was chosen.
    alpha = promotion.alpha / len(ranking.ranked)
    low, high = interval(candidate.rows[row_metric(promotion.metric)], alpha)
    verdict = ranking.verdicts.get(candidate.model_id)
    return {
        "place": place,
        "variant": candidate.name,
        "model_id": candidate.model_id,
        "score": score(candidate, promotion),
        "interval": [low, high],
        "verdict": verdict.word if verdict else None,
        "against": verdict.rival if verdict else None,
        "difference": _numbers(verdict.difference if verdict else None),
        "at_worst": verdict.at_worst if verdict else None,
        "rows_needed": verdict.rows_needed if verdict else None,
        "note": needed_rows(verdict, promotion) if verdict else "",
        "costs": {name: candidate.metrics[metric_key(name)] for name in promotion.prefer},
        "metrics": candidate.metrics,
    }


def _table(content: dict[str, Any]) -> list[str]:
    prefer, metric = content["policy"]["prefer"], content["policy"]["metric"]
    heads = ["", "variant", metric, "interval", "against the best other", "at worst", "verdict", *prefer]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in content["ranking"]:
        cells = [
            str(row["place"]),
            row["variant"],
            f"{row['score']:.4f}",
            f"{row['interval'][0]:.4f} to {row['interval'][1]:.4f}",
            f"{_show_difference(row['difference'])} {row['against']}" if row["difference"] else "-",
            f"{row['at_worst']:+.4f}" if row["difference"] else "-",
            _show_verdict(row),
            *[f"{row['costs'][name]:g}" for name in prefer],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _numbers(gap: Difference | None) -> dict[str, float] | None:
    return {"mean": gap.mean, "low": gap.low, "high": gap.high} if gap else None


def _reference_lines(content: dict[str, Any]) -> list[str]:
    """Return a line about the reference, if a report has one."""
    reference = content.get("reference")
    if not reference:
        return []
    if reference["score"] is None:
        return [f"- Reference: {reference['note']}"]
    return [f"- Reference: {reference['variant']} {reference['score']:.4f}, {reference['note']}"]


def _show_verdict(row: dict[str, Any]) -> str:
    if row["verdict"] is None:
        return "alone"
    return f"{row['verdict']} ({row['note']})" if row["note"] else str(row["verdict"])


def _show_difference(gap: dict[str, float]) -> str:
    return f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
