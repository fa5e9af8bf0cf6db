"""The main job: build the variants of conf/main.yaml, score them, promote the best one.

    mlflow run .
    mlflow run . -P model=phi3_mini_4k -P generation.max_tokens=64

Reads conf/main.yaml. Writes a run with a child run for each variant and each step, a leaderboard, and the champion. A
variant whose fingerprint is READY already is reused.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from typing import TYPE_CHECKING
from urllib.parse import quote

from steps import command_line, register
from steps.build import build, fingerprint
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.schema import BuildConfig, EvaluateConfig, MainConfig, RegisterConfig, step_config
from steps.errors import StepError
from steps.evaluate import evaluate
from steps.evaluation import prompt_set, ruler, scores
from steps.evaluation.report import leaderboard
from steps.evaluation.statistics import power_sentence
from steps.output import echo
from steps.store import address, integrity, names, runs
from steps.store.variants import Variant, find_variants

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run_all(config: MainConfig, variants: list[BuildConfig]) -> None:
    """Build, evaluate and register in one process. The steps talk to each other through MLflow."""
    import mlflow

    client = mlflow.MlflowClient()
    # Its faults are reported before anything is built.
    rows = prompt_set.load(config.prompt_set)
    evaluate_config = step_config(EvaluateConfig, config)
    measure = ruler.make(evaluate_config)
    scores.check_rows(rows, measure.metrics)
    echo(power_sentence(len(rows.rows), config.promotion.margin, config.promotion.alpha, len(variants)))
    register_config = step_config(RegisterConfig, config)
    with runs.start("main") as active:
        model_ids = build_all(client, variants)
        evaluated = evaluate(evaluate_config, rows)
        # The champion may be of another experiment, or lack what the policy asks for.
        if missing := register.missing_scorecard(client, register_config, rows, measure):
            evaluate(missing.evaluation(evaluate_config), rows)
        promoted = register.register(register_config, rows)
        chosen = [
            variant for variant in find_variants(client, active.info.experiment_id) if variant.model_id in model_ids
        ]
        if promoted:
            metrics = list(measure.metrics)
            leaderboard.show(chosen, rows, metrics, promoted.standing)
            mlflow.log_dict(leaderboard.as_dict(chosen, rows, metrics, promoted.standing), "leaderboard.json")
    echo_next_commands(chosen, config, active.info.experiment_id)
    evaluated.check_rows()


def build_all(client: MlflowClient, variants: list[BuildConfig]) -> list[str]:
    """Build the variants that are not READY yet; returns the ids of the LoggedModels of all."""
    import mlflow

    # The newest last: it is the one to reuse.
    logged = find_variants(client, runs.experiment_id())
    ready: dict[str, str] = {}
    checkpoints: dict[str, Checkpoint] = {}
    model_ids: list[str] = []
    for config in variants:
        source = str(config.model)
        checkpoint = checkpoints.get(source) or checkpoints.setdefault(source, resolve(config.model))
        identity = fingerprint(config, checkpoint)
        if identity not in ready:
            reused = _intact(client, [variant for variant in reversed(logged) if variant.fingerprint == identity])
            if reused:
                echo(f"Ready already: models:/{reused} (variant {identity[:12]})")
            ready[identity] = reused or build(config, checkpoint)
        if ready[identity] not in model_ids:
            model_ids.append(ready[identity])
    mlflow.log_param("variants.count", len(model_ids))
    return model_ids


def _intact(client: MlflowClient, twins: list[Variant]) -> str | None:
    """Return the model of the first variant that has lost no file; None if there is none."""
    for variant in twins:
        if not (lost := integrity.missing(client, variant)):
            return variant.model_id
        echo(f"Not reused: {variant.name} ({variant.uri}): {', '.join(lost)}.")
    return None


def echo_next_commands(variants: list[Variant], config: MainConfig, experiment: str) -> None:
    """Print the two commands to go on with. A dry run has made no champion to serve."""
    run_ids = quote(json.dumps([variant.run_id for variant in variants]))
    experiments = quote(json.dumps([experiment]))
    echo("\nCompare the runs:")
    page = address.ui_address()
    if page.startswith("http://127.0.0.1:5000"):
        echo(f"    mlflow ui --port 5000{address.ui_arguments()}")
    echo(f"    {page}/#/compare-runs?runs={run_ids}&experiments={experiments}")
    if not config.dry_run:
        echo("Serve the champion:")
        model = f"models:/{config.registered_model}@{names.CHAMPION}"
        echo(f"    mlflow models serve -m {model} --env-manager uv --port 5001")


def plan(overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """Split overrides into main's own overrides and the override lists of all variants.

    An override such as `model.seed=3` applies to every variant that has the key; a sweep multiplies the list.
    """
    build_keys = {entry.name for entry in fields(BuildConfig)}
    shared = [entry for entry in overrides if command_line.key_of(entry).partition(".")[0] in build_keys]
    own = [entry for entry in overrides if entry not in shared]
    jobs = command_line.expand(own)
    command_line.check("main", jobs)
    if len(jobs) > 1:
        raise StepError("A sweep in main multiplies variants: only keys of build can have one.")
    listed = [command_line.parse(variant)[1] for variant in command_line.compose("main", own).variants]
    points = [point for variant in listed for point in command_line.expand([*variant, *shared])]
    points = command_line.without_foreign_keys("build", points, {command_line.key_of(entry) for entry in shared})
    command_line.check("build", points)
    return own, points


def main() -> None:
    """Run the main job from the command line."""
    command_line.exit_on_error(lambda: _main(sys.argv[1:]))


def _main(arguments: list[str]) -> None:
    flags, overrides = command_line.parse(arguments)
    own, points = (overrides, []) if flags else plan(overrides)

    def run(config: MainConfig) -> None:
        run_all(config, [command_line.compose("build", point) for point in points])

    command_line.run_with_hydra("main", run, own, flags)


if __name__ == "__main__":
    main()
