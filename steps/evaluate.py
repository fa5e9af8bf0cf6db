"""Score variants on a prompt set and log the scores to MLflow.

    python -m steps.evaluate
    mlflow run . -e evaluate -P prompt_set.path=my.jsonl -P run_id=…

Reads conf/evaluate.yaml, the prompt set and the READY variants of the experiment; writes metrics and the
table of rows to each variant's run and LoggedModel.
"""

from time import perf_counter
from typing import Any

from steps import cli, tracking
from steps.errors import StepError
from steps.evaluation import answers, contract, prompt_set, scorecard, scores
from steps.evaluation.prompt_set import PromptSet
from steps.quiet import quiet
from steps.schema import EvaluateConfig
from steps.tracking import Variant

MAKE_ONE = "Make one with `mlflow run . -e build` (or `python -m steps.build`)."


def evaluate(config: EvaluateConfig) -> list[str]:
    """Score what has no scorecard yet; returns the ids of the LoggedModels that were scored."""
    import mlflow

    rows = prompt_set.load(config.prompt_set)
    client = mlflow.MlflowClient()
    chosen = _choose(config, rows, tracking.variants(client, tracking.experiment_id()))
    if not chosen:
        tracking.say(f"Every variant has a scorecard for {rows.name} ({len(rows.rows)} rows) already.")
        return []
    metrics = scores.load_metrics(config.evaluate.metrics)
    with tracking.run(f"evaluate-{rows.name}"):
        mlflow.log_params(
            {"prompt_set.rows": len(rows.rows), "prompt_set.sha256": rows.sha256, "evaluated": len(chosen)}
        )
        faults = [_attempt(client, variant, rows, metrics, config) for variant in chosen]
    if any(faults):
        raise StepError(*filter(None, faults))
    return [variant.model_id for variant in chosen]


def _attempt(
    client: Any, variant: Variant, rows: PromptSet, metrics: dict[str, Any], config: EvaluateConfig
) -> str | None:
    """Score one variant; a variant that cannot be loaded or asked must not keep the others from it."""
    try:
        score_variant(client, variant, rows, metrics, config)
    except Exception as error:
        return f"{variant.name} (models:/{variant.model_id}) could not be scored: {type(error).__name__}: {error}"
    return None


def score_variant(client: Any, variant: Variant, rows: PromptSet, metrics: dict[str, Any], config: EvaluateConfig):
    """Ask, score and log one variant; its scorecard counts only when all of it is logged."""
    import mlflow

    settings = config.evaluate
    with answers.loaded(variant.uri) as model:
        started = perf_counter()
        answered = answers.answer(model, variant, rows, settings.batch_size, settings.seed)
        seconds = perf_counter() - started
        with quiet():
            results = contract.run(model, variant.params["interface"])
    with tracking.reopened(variant.run_id):
        _log_contract(results, variant.model_id)
        values, digest = scores.score(rows, answered, metrics, variant.model_id)
        mlflow.set_tag("phi3.prompt_set_sha256", rows.sha256)
        mlflow.log_metric("answers/seconds", seconds, model_id=variant.model_id)
    mark = scorecard.mark(rows.sha256, digest, settings)
    client.set_logged_model_tags(variant.model_id, {scorecard.tag(rows.sha256): mark})
    first = config.evaluate.metrics[0]
    tracking.say(f"Scored {variant.name}: {first} {values.get(f'{first}/mean', float('nan')):.3f} ({seconds:.1f} s)")


def _log_contract(results: list[contract.Result], model_id: str) -> None:
    """How many checks of the contract passed, and which failed and how."""
    import mlflow

    passed = sum(result.fault is None for result in results)
    mlflow.log_metrics({"contract/passed": passed, "contract/total": len(results)}, model_id=model_id)
    # Not log_table, which would append to the table of an earlier evaluation of this run.
    rows = [[result.name, result.fault is None, result.fault or ""] for result in results]
    mlflow.log_dict({"columns": ["check", "passed", "fault"], "data": rows}, "contract.json")


def _choose(config: EvaluateConfig, rows: PromptSet, variants: list[Variant]) -> list[Variant]:
    """The variant of `run_id`, or every one without a scorecard for these rows."""
    if config.run_id:
        chosen = [variant for variant in variants if variant.run_id == config.run_id]
        if not chosen:
            raise StepError(f"run_id must be the run of a READY variant of this experiment, got '{config.run_id}'.")
        return chosen
    if not variants:
        raise StepError(f"There is no variant to evaluate in this experiment. {MAKE_ONE}")
    return [variant for variant in variants if not scorecard.has_scorecard(variant, rows.sha256, config.evaluate)]


def main() -> None:
    """Run the step from the command line."""
    cli.run("evaluate", evaluate)


if __name__ == "__main__":
    main()
