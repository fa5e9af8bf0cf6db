"""Score one variant: ask it, compute the metrics, log the scorecard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steps.config.schema import EvaluateConfig
from steps.errors import StepError
from steps.evaluation import context_check, contract_suite, journal, judge, scorecard, scores, scores_log
from steps.evaluation.answers import Answer, answer_rows
from steps.evaluation.asking import Asker, loaded
from steps.evaluation.context_check import ContextCheck
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import state
from steps.evaluation.scorecard import Scorecard
from steps.output import echo, suppress_output
from steps.store import integrity, names, runs
from steps.store.environment import package_versions
from steps.store.variants import Variant, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN_ROWS = 5


@dataclass(frozen=True)
class Findings:
    """What asking a variant gave: answers of every repeat, and the results of the contract suite."""

    repeats: list[list[Answer]]
    contract: list[contract_suite.Result]

    @property
    def seconds(self) -> float:
        """How long the answers took, whenever they were given."""
        return sum(answer.latency_ms or 0 for answers in self.repeats for answer in answers) / 1000


def score_variant(
    client: MlflowClient,
    variant: Variant,
    rows: PromptSet,
    metrics: dict[str, Any],
    config: EvaluateConfig,
    check: ContextCheck | None = None,
) -> Scorecard:
    """Ask, score and log one variant. Its scorecard counts only when all of it is logged.

    Args:
        client: The store.
        variant: What to score.
        rows: The prompt set.
        metrics: Loaded metrics by name.
        config: How to ask and score.
        check: The variant's context check, if it was made before.
    """
    if check is None:
        check = context_check.context_check(variant, rows)
        context_check.refuse([check], rows, config.prompt_set.over_context)
    current = read_variant(client, variant.model_id)
    # A scored variant that is named by its run is asked again.
    again = config.run_id is not None and scorecard.metrics_of(current, rows.sha256) is not None
    with journal.opened(journal_key(variant), rows.sha256, lambda: _echo_waiting(variant), again) as entries:
        # Another process may have scored it while this one waited.
        current = read_variant(client, variant.model_id)
        if not config.run_id and scorecard.has_scorecard(current, rows, scores.names(config), config):
            entries.remove()
            return scorecard.read(current, rows.sha256)
        # Before anything of it is loaded: a changed model could run anything.
        if changed := integrity.verify(client, variant):
            raise StepError(f"it is not what build logged: {'; '.join(changed)}.")
        with integrity.local_copy(client, variant) as folder, loaded(folder) as model:
            asker = Asker(model, variant.mode, variant.interface)
            repeats = answer_rows(asker, variant, rows, check, config.evaluate, entries)
            with suppress_output():
                contract = contract_suite.run_checks(asker, contract_suite.checks(variant.interface.name))
        computed = scores.compute(metrics, rows, repeats)
        if config.evaluate.judge.model:
            computed[scores.JUDGE] = judge.compute(config.evaluate.judge, rows, repeats, entries)
        card, findings = scores.scorecard(rows, repeats, computed), Findings(repeats, contract)
        _log(client, variant, rows, card, findings, config)
        entries.remove()
    _echo_scored(variant, card, config, findings.seconds)
    return card


def journal_key(variant: Variant) -> dict[str, Any]:
    """Return everything that decides over an answer in addition to the question."""
    return {
        "environment": package_versions(),
        "model_id": variant.model_id,
        "fingerprint": variant.fingerprint,
    }


def _log(
    client: MlflowClient,
    variant: Variant,
    rows: PromptSet,
    card: Scorecard,
    findings: Findings,
    config: EvaluateConfig,
) -> None:
    """Log everything to the variant's run and LoggedModel, and last the mark that says that it is complete."""
    import mlflow

    data, first = scores_log.dataset(rows), findings.repeats[0]
    latencies = [answer.latency_ms for answer in first]
    state.invalidate(client, variant, rows)
    with runs.reopen(variant.run_id):
        scores_log.log(card, data, latencies, variant.model_id)
        # With the dataset, so that what was measured on two prompt sets can be told apart.
        mlflow.log_metrics(_counts(card, findings), dataset=data, model_id=variant.model_id)
        # log_table would append to the table of an earlier evaluation of this run.
        results = [[result.name, result.fault is None, result.fault or ""] for result in findings.contract]
        mlflow.log_dict({"columns": ["check", "passed", "fault"], "data": results}, "contract.json")
        scorecard.log(card, latencies)
        mlflow.set_tag(names.PROMPT_SET_SHA256, rows.sha256)
    mark = scorecard.mark(rows, data.digest, scores.names(config), config)
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): mark})


def _counts(card: Scorecard, findings: Findings) -> dict[str, float]:
    """Return the metrics that are no scores: time, errors, skipped rows, contract."""
    first = findings.repeats[0]
    counts: dict[str, float] = {
        "answers/seconds": findings.seconds,
        names.ERRORS.key: sum(error is not None for error in card.errors),
        names.SKIPPED.key: sum(skipped is not None for skipped in card.skipped),
        names.CONTRACT_PASSED.key: sum(result.fault is None for result in findings.contract),
        names.CONTRACT_TOTAL.key: len(findings.contract),
    }
    if any(answer.finish_reason for answer in first):
        counts[names.TRUNCATED.key] = sum(answer.finish_reason == "length" for answer in first)
    return counts


def _echo_waiting(variant: Variant) -> None:
    echo(f"Waiting for another process that is asking {variant.name} these rows.")


def _echo_scored(variant: Variant, card: Scorecard, config: EvaluateConfig, seconds: float) -> None:
    metric = scores.first(config)
    score = f"{metric} {card.metrics[f'{metric}/mean']:.3f}" if f"{metric}/mean" in card.metrics else "scored"
    echo(f"Scored {variant.name}: {score} ({seconds:.1f} s{_skipped(card)})")


def _skipped(card: Scorecard) -> str:
    """Return which rows were skipped, and why the first of them was."""
    skipped = [row_id for row_id, reason in zip(card.ids, card.skipped, strict=True) if reason]
    if not skipped:
        return ""
    more = [f"and {len(skipped) - SHOWN_ROWS} more"] if len(skipped) > SHOWN_ROWS else []
    shown = ", ".join([*map(repr, skipped[:SHOWN_ROWS]), *more])
    return f"; {len(skipped)} rows skipped ({shown}): {next(filter(None, card.skipped))}"
