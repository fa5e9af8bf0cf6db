"""What asking a variant gave, and how it is logged to its run and its LoggedModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.evaluation import contract_suite, likelihoods, scorecard, scores_log
from steps.evaluation.answers import Answer
from steps.evaluation.kept_answers import Kept
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import state
from steps.evaluation.scorecard import Scorecard
from steps.output import echo
from steps.store import names, runs
from steps.store.variants import Variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN_ROWS = 5


@dataclass(frozen=True)
class Findings:
    """What asking a variant gave: answers of every repeat, and the results of the contract suite if it was run."""

    repeats: list[list[Answer]]
    contract: list[contract_suite.Result] | None

    @property
    def stopped(self) -> bool:
        """Return whether rows were not asked, because the variant was stopped early."""
        return any(answer.unasked for answer in self.repeats[0])

    @property
    def seconds(self) -> float:
        """Return how many seconds the answers took, whenever they were given."""
        return sum(answer.latency_ms or 0 for answers in self.repeats for answer in answers) / 1000


def log(
    client: MlflowClient,
    variant: Variant,
    rows: PromptSet,
    card: Scorecard,
    findings: Findings,
    kept: Kept | None,
    known_likelihoods: dict[str, Any],
    mark: dict[str, Any],
) -> None:
    """Log everything to the variant's run and LoggedModel, and last the mark that says that it is complete."""
    import mlflow

    data = scores_log.dataset(rows)
    latencies = [answer.latency_ms for answer in findings.repeats[0]]
    state.invalidate(client, variant, rows, keep_speed=kept is not None)
    with runs.reopen(variant.run_id):
        scores_log.log(card, data, latencies, variant.model_id)
        # With the dataset, so that what was measured on two prompt sets can be told apart.
        counts = _contract_counts(findings) | ({} if kept else _answer_counts(card, findings))
        if counts:
            mlflow.log_metrics(counts, dataset=data, model_id=variant.model_id)
        if findings.contract is not None:
            # log_table would append to the table of an earlier evaluation of this run.
            results = [[result.name, result.fault is None, result.fault or ""] for result in findings.contract]
            mlflow.log_dict({"columns": ["check", "passed", "fault"], "data": results}, "contract.json")
        scorecard.log(card, latencies)
        if known_likelihoods:
            mlflow.log_dict(known_likelihoods, likelihoods.file(rows.sha256))
        mlflow.set_tag(names.PROMPT_SET_SHA256, rows.sha256)
    value = scorecard.mark(rows, data.digest, **mark)
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): value})


def _answer_counts(card: Scorecard, findings: Findings) -> dict[str, float]:
    """Return the metrics of the answers that are no scores: time, errors, skipped rows."""
    first = findings.repeats[0]
    counts: dict[str, float] = {
        "answers/seconds": findings.seconds,
        names.ERRORS.key: sum(error is not None for error in card.errors),
        names.SKIPPED.key: sum(skipped is not None for skipped in card.skipped),
    }
    if any(answer.finish_reason for answer in first):
        counts[names.TRUNCATED.key] = sum(answer.finish_reason == "length" for answer in first)
    if known := [answer for answer in first if answer.reused_tokens is not None]:
        counts[names.PROMPT_TOKENS] = sum(answer.prompt_tokens or 0 for answer in known)
        counts[names.REUSED_TOKENS] = sum(answer.reused_tokens or 0 for answer in known)
    return counts


def _contract_counts(findings: Findings) -> dict[str, float]:
    """Return the metrics of the contract suite; empty if it was not run."""
    if findings.contract is None:
        return {}
    return {
        names.CONTRACT_PASSED.key: sum(result.fault is None for result in findings.contract),
        names.CONTRACT_TOTAL.key: len(findings.contract),
    }


def echo_scored(variant: Variant, card: Scorecard, metric: str, seconds: float, kept: bool) -> None:
    """Print what a variant scored, and how long its answers took."""
    score = f"{metric} {card.metrics[f'{metric}/mean']:.3f}" if f"{metric}/mean" in card.metrics else "scored"
    how = "from its kept answers" if kept else f"{seconds:.1f} s"
    echo(f"Scored {variant.name}: {score} ({how}{_skipped(card)})")


def _skipped(card: Scorecard) -> str:
    """Return which rows were skipped, and why the first of them was."""
    skipped = [row_id for row_id, reason in zip(card.ids, card.skipped, strict=True) if reason]
    if not skipped:
        return ""
    more = [f"and {len(skipped) - SHOWN_ROWS} more"] if len(skipped) > SHOWN_ROWS else []
    shown = ", ".join([*map(repr, skipped[:SHOWN_ROWS]), *more])
    return f"; {len(skipped)} rows skipped ({shown}): {next(filter(None, card.skipped))}"
