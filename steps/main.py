"""The main job: build the variants of conf/main.yaml, score them, promote the best one.

    mlflow run .
    mlflow run . -P model=phi3_mini_4k -P generation.max_tokens=64

Reads conf/main.yaml. Writes a run with a child run for each variant and each step, a leaderboard, and the champion. A
variant whose fingerprint is READY already is reused. A variant that fails, or that this machine cannot run, is left out
and does not keep the others from being ranked. Exit codes: 0 done, 1 failed, 3 done but some variants or rows have an
error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from steps import command_line, register
from steps.build import build, find_reusable, fingerprint
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.command_line import launching
from steps.config.launch import Launcher
from steps.config.schema import BuildConfig, EvaluateConfig, MainConfig, Model, Promotion, RegisterConfig, step_config
from steps.errors import RowErrors, StepError, VariantErrors, sentences_of
from steps.evaluate import evaluate
from steps.evaluate import jobs as evaluate_jobs
from steps.evaluation import prompt_set, ruler, scores
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.report import by_set, leaderboard, views
from steps.evaluation.report.leaderboard import Standing
from steps.evaluation.ruler import Ruler
from steps.evaluation.statistics import power_sentence
from steps.output import echo
from steps.promotion import early_stopping
from steps.store import connection, names, runs
from steps.store.commands import serve_command
from steps.store.variants import Variant, find_variants, read_variant

if TYPE_CHECKING:
    from mlflow import MlflowClient


def run_all(config: MainConfig, variants: list[BuildConfig], fan_out: Callable[[], None] = lambda: None) -> None:
    """Build, evaluate and register. The steps talk to each other through MLflow.

    Args:
        config: What to do.
        variants: What to build.
        fan_out: Build and evaluate what a launcher can do at the same time; everything else is done here.
    """
    import mlflow

    client = mlflow.MlflowClient()
    # Its faults are reported before anything is built.
    rows = prompt_set.load(config.prompt_set)
    evaluate_config = step_config(EvaluateConfig, config)
    measure = ruler.make(evaluate_config)
    scores.check_rows(rows, measure.metrics)
    register_config = step_config(RegisterConfig, config)
    register.check_name(client, register_config)
    early_stopping.check(evaluate_config, measure)
    echo(power_sentence(len(rows.rows), config.promotion.margin, config.promotion.alpha, len(variants)))
    with runs.start("main") as active:
        fan_out()
        model_ids, faults = build_all(client, variants)
        faults += evaluate_all(evaluate_config, rows, model_ids)
        try:
            # The champion may be of another experiment, or lack what the policy asks for.
            for missing in register.missing_scorecards(client, register_config, rows, measure):
                evaluate(missing.evaluation(evaluate_config), rows)
            promoted = register.register(register_config, rows, model_ids)
        except StepError as error:
            if not faults:
                raise
            raise StepError(*faults, *error.faults) from error
        if promoted:
            competing = _competing(client, active.info.experiment_id, model_ids, promoted.champion_model_id)
            _log_leaderboard(competing, rows, list(measure.metrics), promoted.standing)
        view = _prepare_view(client, config.promotion, rows, measure)
    echo_next_commands(config, view)
    if faults:
        raise RowErrors(*faults)


def build_all(client: MlflowClient, variants: list[BuildConfig]) -> tuple[list[str], list[str]]:
    """Build the variants that are not READY yet and that this machine can run.

    Returns:
        The ids of the LoggedModels of all; a sentence for each variant that could not be built.

    Raises:
        StepError: There is no variant to go on with.
    """
    import mlflow

    ready: dict[str, str] = {}
    resolve_once = _resolve_once()
    faults: dict[str, str] = {}  # the reason of each sentence
    for config in _runnable(variants):
        try:
            checkpoint = resolve_once(config.model)
            identity = fingerprint(config, checkpoint)
            if identity not in ready:
                reusable = None if config.force else find_reusable(client, identity)
                ready[identity] = reusable.model_id if reusable else build(config, checkpoint)
        except Exception as error:  # whatever a library raises: the others go on
            connection.check_server("went away and has not come back")
            why = sentences_of(connection.in_plain_words(error))
            faults[f"{command_line.variant_name(config)} could not be built: {why}"] = why
    if not ready:
        raise StepError(*dict.fromkeys(faults.values()))
    model_ids = list(dict.fromkeys(ready.values()))
    mlflow.log_param("variants.count", len(model_ids))
    return model_ids, list(faults)


def _resolve_once() -> Callable[[Model], Checkpoint]:
    """Return `resolve`, which tries each source once: a hub that cannot be reached would be tried for each variant."""
    outcomes: dict[str, Checkpoint | StepError] = {}

    def resolve_once(model: Model) -> Checkpoint:
        source = str(model)
        if source not in outcomes:
            try:
                outcomes[source] = resolve(model)
            except StepError as error:
                outcomes[source] = error
        if isinstance(outcome := outcomes[source], StepError):
            raise outcome
        return outcome

    return resolve_once


def _runnable(variants: list[BuildConfig]) -> list[BuildConfig]:
    """Return the variants that this machine can run, and print a sentence about each of the others.

    Raises:
        StepError: It can run none.
    """
    faults = [fault for config in variants if (fault := config.device_fault)]
    if len(faults) == len(variants):
        raise StepError(*dict.fromkeys(f"{fault}." for fault in faults))
    for config in variants:
        if fault := config.device_fault:
            echo(f"Left out: {command_line.variant_name(config)}: {fault}.")
    return [config for config in variants if not config.device_fault]


def evaluate_all(config: EvaluateConfig, rows: PromptSet, model_ids: list[str]) -> list[str]:
    """Evaluate these models; returns a sentence for each variant that could not be, and for rows that have an error."""
    try:
        return evaluate(config, rows, model_ids).row_errors
    except VariantErrors as error:
        return list(error.faults)


def _competing(
    client: MlflowClient, experiment_id: str, model_ids: list[str], champion_model_id: str | None
) -> list[Variant]:
    """Return the job's variants and the champion, which may be of another experiment, instead of a copy of it."""
    variants = [variant for variant in find_variants(client, experiment_id) if variant.model_id in model_ids]
    if champion_model_id is None or champion_model_id in model_ids:
        return variants
    champion = read_variant(client, champion_model_id)
    return [champion, *(variant for variant in variants if variant.fingerprint != champion.fingerprint)]


def _log_leaderboard(variants: list[Variant], rows: PromptSet, metrics: list[str], standing: Standing) -> None:
    """Print the leaderboard, and log all of it to the main job's run, whose description is the printed part."""
    import mlflow

    leaderboard.show(variants, rows, metrics, standing)
    mlflow.log_dict(leaderboard.as_dict(variants, rows, metrics, standing), "leaderboard.json")
    mlflow.set_tag(names.NOTE, leaderboard.markdown(variants, rows, metrics, standing))


def _prepare_view(client: MlflowClient, policy: Promotion, rows: PromptSet, measure: Ruler) -> str:
    """Prepare the view of the prompt set, sorted by the policy's metric; returns its name."""
    # A policy may compare by something that is no score.
    shown = (measure.first, names.less_is_better(measure.first))
    if policy.metric in measure.metrics:
        shown = (policy.metric, policy.less_is_better)
    return views.prepare(client, by_set.label(client, rows), *shown)


def echo_next_commands(config: MainConfig, view: str) -> None:
    """Print the two commands to go on with. A dry run has made no champion to serve."""
    echo("\nCompare the runs:")
    for line in views.link(view):
        echo(f"    {line}")
    if not config.dry_run:
        echo("Serve the champion:")
        echo(f"    {serve_command(f'models:/{config.registered_model}@{names.CHAMPION}')}")


def plan(overrides: list[str]) -> tuple[list[str], list[list[str]]]:
    """Split overrides into main's own overrides and the override lists of all variants.

    A choice such as `mode=onnx` picks the variants that have it. Any other override, such as `model.seed=3`, applies to
    every variant that has the key; a sweep multiplies the list.
    """
    build_keys = {entry.name for entry in fields(BuildConfig)}
    shared = [entry for entry in overrides if command_line.key_of(entry).partition(".")[0] in build_keys]
    own = [entry for entry in overrides if entry not in shared]
    jobs = command_line.expand(own)
    command_line.check("main", jobs)
    if len(jobs) > 1:
        raise StepError("A sweep in main multiplies variants: only keys of build can have one.")
    listed, shared = command_line.pick(command_line.listed_variants(own), shared)
    points = [point for variant in listed for point in command_line.expand([*variant, *shared])]
    points = command_line.without_foreign_keys("build", points, {command_line.key_of(entry) for entry in shared})
    command_line.check("build", points, devices=False)
    return jobs[0], points


def fan_out(own: list[str], points: list[list[str]], launcher: Launcher) -> None:
    """Build and evaluate by a launcher what is missing.

    Each checkpoint is made or fetched here first: once, not once a job. What a job cannot do is printed, tried again
    here afterwards, and reported as without a launcher.
    """
    import mlflow

    client, resolve_once = mlflow.MlflowClient(), _resolve_once()
    known = {variant.fingerprint for variant in find_variants(client, runs.experiment_id())}
    missing: dict[str, list[str]] = {}
    for point in points:
        config = command_line.compose("build", point)
        with contextlib.suppress(StepError):
            if not config.device_fault and (identity := fingerprint(config, resolve_once(config.model))) not in known:
                missing.setdefault(identity, point)
    launching.echo_faults("build", launching.launch("build", list(missing.values()), launcher))
    keys = {entry.name for entry in fields(EvaluateConfig)}
    words = [override for override in own if command_line.key_of(override).partition(".")[0] in keys]
    jobs = evaluate_jobs(command_line.compose("evaluate", words))
    outcomes = launching.launch("evaluate", [[*words, *job] for job in jobs], launcher)
    launching.echo_faults("evaluate", outcomes)


def main() -> None:
    """Run the main job from the command line."""
    command_line.exit_on_error(lambda: _main(sys.argv[1:]))


def _main(arguments: list[str]) -> None:
    flags, overrides = command_line.parse(arguments)
    overrides, launcher = launching.split(overrides)
    own, points = (overrides, []) if flags else plan(overrides)

    def run(config: MainConfig) -> None:
        variants = [command_line.compose("build", point) for point in points]
        run_all(config, variants, lambda: fan_out(own, points, launcher) if launcher.package else None)

    command_line.run_with_hydra("main", run, own, flags)


if __name__ == "__main__":
    main()
