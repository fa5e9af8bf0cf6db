"""The main job: build the variants of conf/main.yaml, score them, promote the best one.

    mlflow run .
    mlflow run . -P model=phi3_mini_4k -P generation.max_tokens=64

Reads conf/main.yaml; writes a run with a child run for each variant and for each step, a leaderboard, and
the champion. A variant whose fingerprint is READY already is used again.
"""

import sys
from dataclasses import fields
from typing import Any

from steps import command_line, evaluate, register
from steps.build import build, fingerprint
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.schema import BuildConfig, EvaluateConfig, MainConfig, RegisterConfig, only
from steps.errors import StepError
from steps.evaluation import leaderboard, prompt_set, scores
from steps.output import echo
from steps.store import runs
from steps.store.names import FINGERPRINT
from steps.store.variants import find_variants


def run_all(config: MainConfig, variants: list[BuildConfig]) -> None:
    """Build, evaluate and register in one process; each step talks to the next through MLflow."""
    import mlflow

    client = mlflow.MlflowClient()
    # A fault of it is told before anything is built.
    scores.check_rows(prompt_set.load(config.prompt_set), config)
    with runs.start("main") as active:
        model_ids = build_all(client, variants)
        evaluated = evaluate.evaluate(only(EvaluateConfig, config))
        outcome = register.register(only(RegisterConfig, config))
        chosen = [
            variant for variant in find_variants(client, active.info.experiment_id) if variant.model_id in model_ids
        ]
        leaderboard.show(chosen, outcome, config)
        mlflow.log_dict(leaderboard.as_dict(chosen, outcome, config), "leaderboard.json")
    leaderboard.say_next(chosen, config, active.info.experiment_id)
    evaluate.check_rows(evaluated)


def build_all(client: Any, variants: list[BuildConfig]) -> list[str]:
    """Have every variant READY, building those that are not yet; returns the ids of their LoggedModels."""
    import mlflow

    ready = {variant.tags[FINGERPRINT]: variant.model_id for variant in find_variants(client, runs.experiment_id())}
    checkpoints: dict[str, Checkpoint] = {}
    model_ids: list[str] = []
    for config in variants:
        source = str(config.model)
        checkpoint = checkpoints.get(source) or checkpoints.setdefault(source, resolve(config.model))
        identity = fingerprint(config, checkpoint)
        if identity not in ready:
            ready[identity] = build(config, checkpoint)
        elif ready[identity] not in model_ids:
            echo(f"Ready already: models:/{ready[identity]} (variant {identity[:12]})")
        if ready[identity] not in model_ids:
            model_ids.append(ready[identity])
    mlflow.log_param("variants.count", len(model_ids))
    return model_ids


def plan(overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """Split overrides into main's own overrides and the override lists of all variants.

    What is about a variant reaches every one, and a sweep in it multiplies them.
    """
    command_line.check("main", command_line.expand(overrides))
    keys = {entry.name for entry in fields(BuildConfig)}
    for_variants = [override for override in overrides if command_line.key_of(override).partition(".")[0] in keys]
    own = [override for override in overrides if override not in for_variants]
    if len(command_line.expand(own)) > 1:
        raise StepError("A sweep in main multiplies variants: only keys of build can have one.")
    listed = command_line.compose("main", own).variants
    points = [
        job for variant in listed for job in command_line.expand([*command_line.parse(variant)[1], *for_variants])
    ]
    command_line.check("build", points)
    return own, points


def main() -> None:
    """Run the main job from the command line."""
    command_line.guarded(lambda: _main(sys.argv[1:]))


def _main(arguments: list[str]) -> None:
    flags, overrides = command_line.parse(arguments)
    own, points = (overrides, []) if flags else plan(overrides)
    command_line.hand_to_hydra(
        "main", lambda config: run_all(config, [command_line.compose("build", point) for point in points]), own, flags
    )


if __name__ == "__main__":
    main()
