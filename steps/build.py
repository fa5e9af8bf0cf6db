"""Build one variant of Phi-3 and log it to MLflow.

    python -m steps.build mode=onnx precision=int4
    mlflow run . -e build -P mode=transformers,pyfunc,onnx

Reads conf/build.yaml and the checkpoint; writes one run (parameters, config.yaml, manifests, size,
time) with one LoggedModel.
"""

from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from steps import command_line
from steps.checkpoints import disk_space, staging
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.config.parameters import flatten, text
from steps.config.schema import BuildConfig
from steps.digests import digest, digest_code
from steps.modes import flavors
from steps.output import echo
from steps.store import integrity, orphans, prompts, runs
from steps.store.environment import git_commit, package_versions
from steps.store.names import FINGERPRINT
from steps.wrappers.manifest import read_manifest

WRAPPERS = Path(__file__).parent / "wrappers"


def build(config: BuildConfig, checkpoint: Checkpoint | None = None) -> str:
    """Log one variant; returns the id of its LoggedModel. `checkpoint` saves resolving it again."""
    import mlflow

    checkpoint = checkpoint or resolve(config.model)
    client = mlflow.MlflowClient()
    started = perf_counter()
    identity = fingerprint(config, checkpoint)
    with runs.start(variant_name(config), {FINGERPRINT: identity}) as run, orphans.discard_on_failure(client, run):
        params = flatten(asdict(config))
        runs.log_params(params)
        mlflow.log_text(command_line.to_yaml(config), "config.yaml")
        mlflow.log_dict(_checkpoint_facts(checkpoint), "checkpoint.json")
        mlflow.log_dict(package_versions(), "environment.json")
        if commit := git_commit():
            mlflow.set_tag("mlflow.source.git.commit", commit)
        place = integrity.local_folder(run.info.artifact_uri)
        with disk_space.explain_full_disk(checkpoint.bytes, place), staging.staged(checkpoint, config) as folder:
            size = sum(file.stat().st_size for file in folder.iterdir())
            staged = read_manifest(folder)
            model_id = flavors.log_variant(
                config,
                folder,
                name=variant_name(config),
                params={key: text(value) for key, value in params.items()},
                tags={"phi3.checkpoint_sha256": checkpoint.sha256},
            )
        mlflow.log_metrics({"size/bytes": size, "build/seconds": perf_counter() - started}, model_id=model_id)
        at = flavors.stored_at(config, folder)
        manifest = integrity.seal(client, model_id, {f"{at}/{name}": entry for name, entry in staged.items()})
        prompts.link(config.prompting, model_id, run.info.run_id)
        # Only now is it a variant: whoever is killed before leaves none.
        client.set_logged_model_tags(model_id, {FINGERPRINT: identity, integrity.TAG: manifest})
    echo(f"Built {variant_name(config)}: models:/{model_id} ({size / 1e6:.1f} MB)")
    return model_id


def fingerprint(config: BuildConfig, checkpoint: Checkpoint) -> str:
    """The sha256 over the resolved configuration, the checkpoint's files, the wrappers and the pins."""
    settings = asdict(config)
    # The checkpoint is known by its bytes, not by where they lie.
    settings["model"] = {"name": config.model.name, "sha256": checkpoint.sha256}
    code = digest_code(WRAPPERS)
    return digest([settings, code, flavors.requirements(config.mode.name)])


def variant_name(config: BuildConfig) -> str:
    """A name that reads: mode, precision, interface, and what is not as usual."""
    parts = [config.mode.name, config.precision.name, config.interface]
    if config.model.name != "miniature":
        parts.insert(0, config.model.name)
    if config.prompting.name != "plain" or config.prompting.system or config.prompting.examples:
        parts.append(config.prompting.name)
    if config.generation.temperature:
        # MLflow allows no dot in the name of a model.
        parts.append(f"t{config.generation.temperature:g}".replace(".", "_"))
    return "-".join(parts)


def _checkpoint_facts(checkpoint: Checkpoint) -> dict:
    return {
        "layout": checkpoint.layout,
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256,
        "files": checkpoint.manifest,
    }


def main() -> None:
    """Run the step from the command line."""
    command_line.run("build", build)


if __name__ == "__main__":
    main()
