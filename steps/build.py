"""Build one variant of Phi-3 and log it to MLflow.

    python -m steps.build mode=onnx precision=int4
    mlflow run . -e build -P mode=transformers,pyfunc,onnx

Reads conf/build.yaml and the checkpoint. Writes one run (parameters, config.yaml, manifests, size, time) with one
LoggedModel. A variant that is there already is not built again, unless `force=true` asks for a copy.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from steps import command_line
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.checkpoints.disk_space import explain_full_disk
from steps.command_line import variant_name
from steps.config.parameters import NO_PARAMETERS, to_params
from steps.config.schema import BuildConfig
from steps.digests import digest, digest_code
from steps.errors import StepError
from steps.evaluation.first_question import ask_first_question, cause
from steps.interfaces import get_interface
from steps.modes import get_mode
from steps.modes.mode import Mode
from steps.output import activity, echo, suppress_output
from steps.store import integrity, names, orphans, prompts, runs, shared_files, shared_weights
from steps.store.environment import git_commit, package_versions
from steps.store.variants import Variant, find_variants
from steps.wrappers.manifest import read_manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRAPPERS = Path(__file__).parent / "wrappers"


def build_or_reuse(config: BuildConfig, checkpoint: Checkpoint | None = None) -> str:
    """Return the LoggedModel of a variant: one that is there and has lost no file, or a new one."""
    import mlflow

    checkpoint = checkpoint or resolve(config.model)
    client = mlflow.MlflowClient()
    reusable = None if config.force else find_reusable(client, fingerprint(config, checkpoint))
    model_id = reusable.model_id if reusable else build(config, checkpoint)
    shared_weights.delete_unused(client, runs.experiment_id())
    return model_id


def find_reusable(client: MlflowClient, identity: str) -> Variant | None:
    """Return the newest variant of the experiment with this fingerprint that has lost no file."""
    logged = find_variants(client, runs.experiment_id())
    for variant in reversed([variant for variant in logged if variant.fingerprint == identity]):
        if not (lost := integrity.missing(client, variant)):
            echo(f"Ready already: {variant.name} ({variant.uri}); force=true builds a copy")
            return variant
        echo(f"Not reused: {variant.name} ({variant.uri}): {', '.join(lost)}.")
    return None


def build(config: BuildConfig, checkpoint: Checkpoint | None = None) -> str:
    """Log one variant.

    Args:
        config: What to build.
        checkpoint: The resolved checkpoint, if it is resolved already.

    Returns:
        The id of the LoggedModel.
    """
    import mlflow

    prompts.check_name(config.prompting)
    checkpoint = checkpoint or resolve(config.model)
    client, mode, started = mlflow.MlflowClient(), get_mode(config.mode.name), perf_counter()
    identity = fingerprint(config, checkpoint)
    name = _free_name(client, variant_name(config), identity)
    with (
        activity(f"building {name}"),
        runs.start(name, {names.FINGERPRINT: identity}) as run,
        orphans.discard_on_failure(client, run),
    ):
        _log_inputs(config, checkpoint)
        place = integrity.local_folder(run.info.artifact_uri)
        with explain_full_disk(checkpoint.bytes, place), mode.stage(checkpoint, config) as folder:
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries = read_manifest(folder)
            with shared_files.set_aside_large_files(folder) as (rest, large):
                model_id = _log_model(mode, config, checkpoint, rest, name, identity)
                shared = shared_files.add_large_files(client, model_id, mode, large, entries)
        mlflow.log_metrics({names.BYTES.key: size, "build/seconds": perf_counter() - started}, model_id=model_id)
        staged = {f"{mode.weights_folder}/{file}": entry for file, entry in entries.items()}
        manifest_sha256 = integrity.seal(client, model_id, staged, shared)
        if config.check:
            _check(config, checkpoint, mode, model_id)
        prompts.link(config.prompting, model_id, run.info.run_id)
        # Only these tags make it a variant: a build that is killed before leaves none.
        client.set_logged_model_tags(model_id, {names.FINGERPRINT: identity, names.MANIFEST_SHA256: manifest_sha256})
    echo(f"Built {name}: models:/{model_id} ({size / 1e6:.1f} MB)")
    return model_id


def fingerprint(config: BuildConfig, checkpoint: Checkpoint) -> str:
    """Return the sha256 over the resolved configuration, the checkpoint's files, the wrappers and the pins."""
    # How it is built changes nothing in the variant.
    settings = {key: value for key, value in asdict(config).items() if key not in NO_PARAMETERS}
    # The checkpoint counts by its bytes, not by where they are.
    settings["model"] = {"name": config.model.name, "sha256": checkpoint.sha256}
    return digest([settings, digest_code(WRAPPERS), get_mode(config.mode.name).requirements])


def _log_inputs(config: BuildConfig, checkpoint: Checkpoint) -> None:
    """Log to the active run what the variant is made of."""
    import mlflow

    runs.log_params(to_params(config))
    mlflow.log_text(command_line.to_yaml(config), "config.yaml")
    mlflow.log_dict(
        {
            "layout": checkpoint.layout,
            "revision": checkpoint.revision,
            "sha256": checkpoint.sha256,
            "files": checkpoint.manifest,
        },
        "checkpoint.json",
    )
    mlflow.log_dict(package_versions(), "environment.json")
    if commit := git_commit():
        mlflow.set_tag("mlflow.source.git.commit", commit)


def _free_name(client: MlflowClient, name: str, identity: str) -> str:
    """Return a name that no other variant of the experiment has.

    Another checkpoint or another version of the code can give the same configuration a new fingerprint, whose first
    digits tell the two apart. A copy of a variant is numbered.
    """
    taken = {variant.name: variant.fingerprint for variant in find_variants(client, runs.experiment_id())}
    if name not in taken:
        return name
    base = name if taken[name] == identity else f"{name}-{identity[:4]}"
    copies = (base if number == 1 else f"{base}-copy{number}" for number in count(1))
    return next(candidate for candidate in copies if candidate not in taken)


def _log_model(mode: Mode, config: BuildConfig, checkpoint: Checkpoint, folder: Path, name: str, identity: str) -> str:
    """Log the staged folder as the mode does; returns the id of the LoggedModel."""
    import mlflow

    try:
        with suppress_output(), _without_bytecode():
            # Created first, because MLflow would replace these parameters by those of the run, which `mlflow run` logs
            # in the shell's quotes.
            tags = {names.CHECKPOINT_SHA256: checkpoint.sha256}
            model = mlflow.initialize_logged_model(name, params=to_params(config), tags=tags)
            common: dict[str, Any] = {
                "model_id": model.model_id,
                "input_example": get_interface(config.interface).example,
                "pip_requirements": mode.whole_requirements,
                # A server reads it in the model's own files.
                "metadata": {names.FINGERPRINT: identity},
            }
            return str(mode.log(config, folder, common).model_id)
    except (TemplateError, KeyError, ValueError, TypeError) as error:
        # What a library raises about the checkpoint's files. Errors of the store and of the disk are others.
        raise StepError(f"The model cannot be logged: {cause(error)}.") from error


def _check(config: BuildConfig, checkpoint: Checkpoint, mode: Mode, model_id: str) -> None:
    """Ask the new model its first question, as a user would."""
    # From a server, the model is fetched again.
    with explain_full_disk(checkpoint.bytes), _without_bytecode():
        ask_first_question(f"models:/{model_id}", mode, get_interface(config.interface))


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Keep Python from compiling a model's code next to it, where it would be logged as part of the model."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def main() -> None:
    """Run the step from the command line."""
    # Each point of a sweep is a job.
    command_line.run("build", build_or_reuse, lambda _: [[]])


if __name__ == "__main__":
    main()
