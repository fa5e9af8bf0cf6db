"""Score variants on a prompt set and log the scores to MLflow.

    python -m steps.evaluate
    mlflow run . -e evaluate -P prompt_set.path=my.jsonl -P run_id=…

Reads conf/evaluate.yaml, the prompt set and the READY variants of the experiment; writes metrics, the scorecard
and the table of rows to each variant's run and LoggedModel. Killed and started again, it asks only what is missing.
Exit codes: 0 done, 1 failed, 3 done and some rows have an error.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from steps import command_line
from steps.config.schema import EvaluateConfig
from steps.errors import RowErrors, StepError
from steps.evaluation import answers, contract, fit, journal, judge, prompt_set, report, scorecard, scores, speed
from steps.evaluation.answers import Answer
from steps.evaluation.fit import Fit
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.scorecard import Scorecard
from steps.output import echo, suppress_output
from steps.store import connection, integrity, runs
from steps.store.environment import package_versions
from steps.store.names import FINGERPRINT
from steps.store.variants import Variant, as_variant, find_variants

MAKE_ONE = "Make one with `mlflow run . -e build` (or `python -m steps.build`)."
SHOWN_ROWS = 5
NOT_SCORED, NOT_REPORTED = "could not be scored", "is scored, but could not be reported on"


@dataclass(frozen=True)
class Outcome:
    """The LoggedModels that were scored, what is to be said of rows that have an error, and what went wrong."""

    model_ids: list[str] = field(default_factory=list)
    row_errors: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def evaluate(config: EvaluateConfig) -> Outcome:
    """Score what has no scorecard yet, and finish the report of what has one.

    Raises StepError with every variant that could not be scored, or not be reported on.
    """
    import mlflow

    rows = prompt_set.load(config.prompt_set)
    scores.check_rows(rows, config)
    client = mlflow.MlflowClient()
    variants = find_variants(client, runs.experiment_id())
    chosen = _choose(config, rows, variants)
    scored = [] if config.run_id else [variant for variant in variants if variant not in chosen]
    unfinished = [variant for variant in scored if report.is_unfinished(variant, rows, config)]
    outcome = Outcome()
    _look_back(scored, rows, config, outcome)
    if chosen or unfinished or not report.is_compared(client, variants, rows, config):
        _evaluate(client, rows, config, chosen, unfinished, outcome)
    else:
        echo(f"Every variant has a scorecard for {rows.name} ({len(rows.rows)} rows) already.")
        _check_faults(outcome)
    return outcome


def _look_back(scored: list[Variant], rows: PromptSet, config: EvaluateConfig, outcome: Outcome) -> None:
    """Tell the row errors of variants that were scored before, and forget what a killed process left of them."""
    for variant in scored:
        journal.forget(_key(variant), rows.sha256)
        with _kept_apart(variant, NOT_REPORTED, outcome):
            if (scorecard.scores(variant, rows.sha256) or {}).get("answers/errors"):
                outcome.row_errors.extend(_row_errors(variant, scorecard.read(variant, rows.sha256)))


def _evaluate(
    client: Any,
    rows: PromptSet,
    config: EvaluateConfig,
    chosen: list[Variant],
    unfinished: list[Variant],
    outcome: Outcome,
) -> None:
    """Score the chosen variants, report on them and the unfinished ones, and compare all, in a run of its own."""
    import mlflow

    fits = fit.check(chosen, rows, config.prompt_set.over_context)
    metrics = scores.load_metrics(scores.names(config)) if chosen else {}
    untimed = [variant for variant in unfinished if report.is_untimed(variant, rows, config)]
    timed = [*chosen, *untimed] if config.evaluate.speed else []
    with runs.start(f"evaluate-{rows.name}"), speed.bench(timed) as bench:
        mlflow.log_params(
            {"prompt_set.rows": len(rows.rows), "prompt_set.sha256": rows.sha256, "evaluated": len(chosen)}
        )
        for variant in chosen:
            with _kept_apart(variant, NOT_SCORED, outcome):
                card = score_variant(client, variant, rows, metrics, config, fits.get(variant.model_id))
                outcome.row_errors.extend(_row_errors(variant, card))
                outcome.model_ids.append(variant.model_id)
                unfinished.append(variant)
        for variant in unfinished:
            with _kept_apart(variant, NOT_REPORTED, outcome):
                report.finish(client, variant, rows, config, bench)
        outcome.faults.extend(report.compare(client, rows, config))
        # In the run, so that it reads FAILED.
        _check_faults(outcome)


def score_variant(
    client: Any,
    variant: Variant,
    rows: PromptSet,
    metrics: dict[str, Any],
    config: EvaluateConfig,
    fitted: Fit | None = None,
) -> Scorecard:
    """Ask, score and log one variant; its scorecard counts only when all of it is logged."""
    fitted = fitted or fit.check_one(variant, rows, config.prompt_set.over_context)
    before = as_variant(client.get_logged_model(variant.model_id))
    # Who names a variant that is scored already has it asked again.
    anew = config.run_id is not None and scorecard.scores(before, rows.sha256) is not None
    with journal.opened(_key(variant), rows.sha256, lambda: _say_waiting(variant), anew) as kept:
        # Another process may have scored it while this one waited.
        now = as_variant(client.get_logged_model(variant.model_id))
        if not config.run_id and scorecard.has_scorecard(now, rows, scores.names(config), config):
            kept.remove()
            return scorecard.read(now, rows.sha256)
        # Before anything of it is loaded: a changed model could run anything.
        if changed := integrity.verify(client, variant):
            raise StepError(f"it is not what build logged: {'; '.join(changed)}.")
        with integrity.local_copy(client, variant) as folder, answers.loaded(folder) as model:
            answered = answers.answer(model, variant, rows, fitted, config.evaluate, kept)
            with suppress_output():
                results = contract.run(model, variant.params["interface"])
        computed = scores.compute(metrics, rows, answered)
        if config.evaluate.judge.model:
            computed[scores.JUDGE] = judge.compute(config.evaluate.judge, rows, answered, kept)
        card = scores.scorecard(rows, answered, computed)
        _log(client, variant, rows, card, answered, results, config)
        kept.remove()
    _say_scored(variant, card, config, _seconds(answered))
    return card


def _log(
    client: Any,
    variant: Variant,
    rows: PromptSet,
    card: Scorecard,
    answered: list[list[Answer]],
    results: list[contract.Result],
    config: EvaluateConfig,
) -> None:
    """All that is known of the variant to its run and LoggedModel, and last the mark that it is whole."""
    import mlflow

    data = scores.dataset(rows)
    latencies = [said.latency_ms for said in answered[0]]
    asked = {
        "answers/seconds": _seconds(answered),
        "answers/errors": sum(error is not None for error in card.errors),
        "answers/skipped": sum(skipped is not None for skipped in card.skipped),
    }
    if variant.params["interface"] == "chat":
        asked["answers/truncated"] = sum(said.finish_reason == "length" for said in answered[0])
    report.begin(client, variant, rows)
    with runs.reopen(variant.run_id):
        scores.log(card, data, latencies, variant.model_id)
        # With the dataset, so that what was measured on two prompt sets can be told apart.
        mlflow.log_metrics(asked | _log_contract(results), dataset=data, model_id=variant.model_id)
        scorecard.log(card, latencies)
        mlflow.set_tag("phi3.prompt_set_sha256", rows.sha256)
    mark = scorecard.mark(rows, data.digest, scores.names(config), config)
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): mark})


def _log_contract(results: list[contract.Result]) -> dict[str, float]:
    """Log which checks of the contract failed and how; returns how many there are and how many passed."""
    import mlflow

    # Not log_table, which would append to the table of an earlier evaluation of this run.
    rows = [[result.name, result.fault is None, result.fault or ""] for result in results]
    mlflow.log_dict({"columns": ["check", "passed", "fault"], "data": rows}, "contract.json")
    return {"contract/passed": sum(result.fault is None for result in results), "contract/total": len(results)}


def _key(variant: Variant) -> dict[str, Any]:
    """All that decides over an answer beside the question, by which a killed evaluation finds it again."""
    return {
        "environment": package_versions(),
        "model_id": variant.model_id,
        "fingerprint": variant.tags[FINGERPRINT],
        "generation": {key: value for key, value in variant.params.items() if key.startswith("generation.")},
    }


def _choose(config: EvaluateConfig, rows: PromptSet, variants: list[Variant]) -> list[Variant]:
    """The variant of `run_id`, or every one without a scorecard for these rows."""
    if config.run_id:
        chosen = [variant for variant in variants if variant.run_id == config.run_id]
        if not chosen:
            raise StepError(f"run_id must be the run of a READY variant of this experiment, got '{config.run_id}'.")
        return chosen
    if not variants:
        raise StepError(f"There is no variant to evaluate in this experiment. {MAKE_ONE}")
    names = scores.names(config)
    return [variant for variant in variants if not scorecard.has_scorecard(variant, rows, names, config)]


def _seconds(answered: list[list[Answer]]) -> float:
    """What the answers took, whenever they were given."""
    return sum(said.latency_ms or 0 for repeat in answered for said in repeat) / 1000


def _say_waiting(variant: Variant) -> None:
    echo(f"Another process asks {variant.name} these rows: waiting for it.")


def _say_scored(variant: Variant, card: Scorecard, config: EvaluateConfig, seconds: float) -> None:
    first = scores.first(config)
    said = f"{first} {card.metrics[f'{first}/mean']:.3f}" if f"{first}/mean" in card.metrics else "scored"
    echo(f"Scored {variant.name}: {said} ({seconds:.1f} s{_left_out(card)})")


def _left_out(card: Scorecard) -> str:
    """Which rows were skipped, and why the first of them was."""
    skipped = [identity for identity, reason in zip(card.ids, card.skipped, strict=True) if reason]
    if not skipped:
        return ""
    more = [f"and {len(skipped) - SHOWN_ROWS} more"] if len(skipped) > SHOWN_ROWS else []
    shown = ", ".join([*map(repr, skipped[:SHOWN_ROWS]), *more])
    return f"; {len(skipped)} rows skipped ({shown}): {next(filter(None, card.skipped))}"


def _row_errors(variant: Variant, card: Scorecard) -> list[str]:
    """A line for the rows of a variant that have an error."""
    failed = {identity: error for identity, error in zip(card.ids, card.errors, strict=True) if error}
    if not failed:
        return []
    identity, error = next(iter(failed.items()))
    return [f"{variant.name} is scored, but {len(failed)} rows have an error: row {identity!r}: {error}"]


@contextlib.contextmanager
def _kept_apart(variant: Variant, what: str, outcome: Outcome) -> Iterator[None]:
    """Make what is raised for a variant its fault, which must not keep the others from anything."""
    try:
        yield
    except Exception as error:
        connection.check_server("went away and has not come back")
        said = "; ".join(error.faults) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"
        outcome.faults.append(f"{variant.name} ({variant.uri}) {what}: {said}")


def _check_faults(outcome: Outcome) -> None:
    if outcome.faults:
        raise StepError(*outcome.faults, *outcome.row_errors)


def check_rows(outcome: Outcome) -> None:
    """Raise RowErrors, for exit code 3, where the evaluation is done and some rows have an error."""
    if outcome.row_errors:
        raise RowErrors(*outcome.row_errors)


def main() -> None:
    """Run the step from the command line."""
    command_line.run("evaluate", lambda config: check_rows(evaluate(config)))


if __name__ == "__main__":
    main()
