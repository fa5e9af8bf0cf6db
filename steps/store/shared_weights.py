"""One copy of the large files for all variants of an experiment whose artifacts are on a server.

They are the artifacts of a run in an experiment of their own, `NAME-weights`: one run for each set of files. A variant
has a pointer to them (wrappers/shared_weights.py), and its sealed manifest names them with their sha256. A tag of its
LoggedModel has the run's id, so that a run that no variant uses any more can be deleted.

No lock is needed. Builds that begin together may upload twice, each to a run of its own. A build reads a run again
after it has tagged its model with it, and a step that deletes a run looks for users again: one of the two brings it
back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict

from steps.digests import digest
from steps.output import suppress_output
from steps.redaction import redacted
from steps.store import names, processes
from steps.store.collisions import retried
from steps.store.pickles import holds_pickle, is_named_as_pickle
from steps.store.variants import logged_models, run_artifacts_by_id
from steps.wrappers.manifest import DamagedCheckpoint, FileEntry
from steps.wrappers.shared_weights import download, stored_bytes, write_pointer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# Within `reading_once`: the place, the name and the sha256 of each shared file that was read and is whole.
_whole: ContextVar[set[tuple[str, str, str]] | None] = ContextVar("whole", default=None)
DESCRIPTION = "Weights that variants share. `build` and `register` delete a run that no variant uses any more."


class SharedFiles(TypedDict):
    """The files that a model shares, by their path in the model, and where they are."""

    location: str
    run_id: str
    files: dict[str, FileEntry]


def share(
    client: MlflowClient, model_id: str, folder: str, files: Mapping[str, Path], entries: Mapping[str, FileEntry]
) -> SharedFiles:
    """Give a model a pointer to files in a shared place, uploading those that are not there.

    Args:
        client: MLflow's client.
        model_id: Id of the model, which is logged without them.
        folder: Where they belong in it.
        files: The staged files by name.
        entries: Their entries in the manifest.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model = client.get_logged_model(model_id)
    wanted = {name: entries[name] for name in files}
    run = _provide(client, model.experiment_id, files, wanted)
    run_id, location = run.info.run_id, str(run.info.artifact_uri)
    client.set_logged_model_tags(model_id, {names.WEIGHTS_RUN: run_id})
    # Another process may have deleted it while nothing used it.
    if client.get_run(run_id).info.lifecycle_stage != "active":
        client.restore_run(run_id)
    with TemporaryDirectory(prefix="phi3-") as temporary:
        pointer = write_pointer(Path(temporary), location, wanted)
        get_artifact_repository(model.artifact_location).log_artifact(str(pointer), folder)  # type: ignore[no-untyped-call]
    return {
        "location": location,
        "run_id": run_id,
        "files": {f"{folder}/{name}": entry for name, entry in wanted.items()},
    }


def delete_unused(client: MlflowClient, experiment: str) -> None:
    """Delete the runs of shared weights that no living variant of an experiment uses, so that `mlflow gc` frees them.

    A run that a variant uses again, because its own run was restored, is restored too.
    """
    place = client.get_experiment_by_name(_name(client, experiment))
    if place is None or place.lifecycle_stage != "active":
        return
    used = _used(client, experiment)
    deleted = []
    for run in _runs(client, place.experiment_id):
        run_id, is_active = run.info.run_id, run.info.lifecycle_stage == "active"
        if run_id in used and not is_active:
            client.restore_run(run_id)
        elif run_id not in used and is_active and not _is_being_uploaded(run):
            client.delete_run(run_id)
            deleted.append(run_id)
    # A build may have begun to use one meanwhile.
    for run_id in _used(client, experiment).intersection(deleted) if deleted else ():
        client.restore_run(run_id)


def lost(client: MlflowClient, shared: SharedFiles, files: Mapping[str, FileEntry], model_place: str) -> list[str]:
    """Return which shared files are missing or have another size. Their content is not read.

    Args:
        client: MLflow's client.
        shared: The files that a model shares.
        files: Those of them that it does not have itself.
        model_place: The artifact location of the model.
    """
    if not files:
        return []
    where = redacted(shared["location"])
    try:
        stored = stored_bytes(shared["location"])
    except Exception as error:  # every kind of store fails in its own way
        return [f"{', '.join(sorted(files))} cannot be looked for in {where} ({type(error).__name__})"]
    faults = []
    for path, entry in sorted(files.items()):
        size = stored.get(Path(path).name)
        if size is None:
            faults.append(f"{path} is missing: it is neither in {redacted(model_place)} nor in {where}")
        elif size != entry["bytes"]:
            problem = "cut short" if size < entry["bytes"] else "too long"
            faults.append(f"{path} is {problem}: {size} bytes in {where}, {entry['bytes']} were logged")
    if not faults and (damaged := _damaged_file(client, shared["run_id"])):
        faults.append(f"{damaged} was changed in {where}")
    return faults


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Have `faults` read each shared file once within the block, however many models share it."""
    token = _whole.set(set())
    try:
        yield
    finally:
        _whole.reset(token)


def faults(client: MlflowClient, shared: SharedFiles, files: Mapping[str, FileEntry], model_place: str) -> list[str]:
    """Read files in their shared place again and return every fault; note there if one was changed."""
    if damages := lost(client, shared, files, model_place):
        return damages
    whole, location = _whole.get(), shared["location"]
    for path, entry in sorted(files.items()):
        place = (location, path, entry["sha256"])
        if whole is not None and place in whole:
            continue
        if fault := _fault(location, path, entry):
            damages.append(fault)
            if "was changed" in fault:
                _mark_damaged(client, shared["run_id"], path)
        elif whole is not None:
            whole.add(place)
    return damages


def _fault(location: str, path: str, entry: FileEntry) -> str | None:
    if is_named_as_pickle(path):
        return f"{path} is a pickle, which is never loaded"
    with TemporaryDirectory(prefix="phi3-") as temporary, suppress_output():
        try:
            file = download(location, PurePosixPath(path).name, entry, temporary)
        except DamagedCheckpoint as damage:
            return str(damage)
        return f"{path} holds a pickle, which is never loaded" if holds_pickle(file) else None


def own_and_shared(
    model: LoggedModel, manifest: Mapping[str, Any], stored: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    """Return the entries of the files that a model must have itself, and of those that it takes from a shared place.

    A model without the tag of a run of shared weights is self-contained. In one with the tag, a shared file that is not
    whole is the beginning of an upload that was killed, and nobody reads it.
    """
    shared = manifest.get("shared", {}).get("files", {})
    absent = {path: entry for path, entry in shared.items() if stored.get(path) != entry["bytes"]}
    if names.WEIGHTS_RUN not in model.tags:
        absent = {}
    return manifest["files"] | {path: entry for path, entry in shared.items() if path not in absent}, absent


def _provide(client: MlflowClient, experiment: str, files: Mapping[str, Path], entries: Mapping[str, FileEntry]) -> Run:
    """Return a run that has the files: a complete one, whose lost files are uploaded again, or a new one."""
    identity = digest({name: entry["sha256"] for name, entry in entries.items()})
    place = retried(_experiment, client, experiment)
    condition = f"tags.`{names.WEIGHTS_SHA256}` = '{identity}'"
    # One that is not finished belongs to another build, which may be killed yet.
    complete = [run for run in _runs(client, place, condition) if run.info.status == "FINISHED"]
    if complete:
        run = min(complete, key=lambda run: (run.info.lifecycle_stage != "active", run.info.start_time))
        if run.info.lifecycle_stage != "active":
            client.restore_run(run.info.run_id)
    else:
        tags = {names.WEIGHTS_SHA256: identity, names.PROCESS: processes.identity()}
        run = client.create_run(place, tags=tags, run_name=f"{', '.join(sorted(files))[:80]} {identity[:8]}")
    try:
        _upload(client, run, files, entries)
    except BaseException:
        if not complete:
            with contextlib.suppress(Exception):
                client.set_terminated(run.info.run_id, "FAILED")
        raise
    if not complete:
        client.set_terminated(run.info.run_id)
    return run


def _upload(client: MlflowClient, run: Run, files: Mapping[str, Path], entries: Mapping[str, FileEntry]) -> None:
    """Upload the files that a run does not have in their whole length, and all of them if one was changed."""
    run_id, is_damaged = run.info.run_id, names.DAMAGED in run.data.tags
    stored = stored_bytes(run.info.artifact_uri)
    for name, file in files.items():
        if is_damaged or stored.get(name) != entries[name]["bytes"]:
            client.log_artifact(run_id, str(file))
    if is_damaged:
        client.delete_tag(run_id, names.DAMAGED)


def _experiment(client: MlflowClient, experiment: str) -> str:
    """Return the experiment of an experiment's shared weights, making it next to its artifacts if it is not there."""
    from mlflow.utils.uri import append_to_uri_path

    name = _name(client, experiment)
    location = append_to_uri_path(client.get_experiment(experiment).artifact_location, "weights")  # type: ignore[no-untyped-call]
    known = client.get_experiment_by_name(name)
    if known is None:
        return str(client.create_experiment(name, location, {names.NOTE: DESCRIPTION}))
    if known.lifecycle_stage != "active":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def _name(client: MlflowClient, experiment: str) -> str:
    return f"{client.get_experiment(experiment).name}-weights"


def _runs(
    client: MlflowClient, place: str, condition: str = f"tags.`{names.WEIGHTS_SHA256}` LIKE '%'"
) -> Iterator[Run]:
    """Yield runs of shared weights from all pages, the deleted ones as well."""
    from mlflow.entities import ViewType

    token = None
    while True:
        page = client.search_runs([place], condition, ViewType.ALL, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _used(client: MlflowClient, experiment: str) -> set[str]:
    """Return the ids of the runs whose files a variant uses that is there or being built, and is not deleted."""
    building = run_artifacts_by_id(client, experiment)
    return {
        model.tags[names.WEIGHTS_RUN]
        for model in logged_models(client, experiment)
        if names.WEIGHTS_RUN in model.tags and str(model.status) != "FAILED" and model.source_run_id in building
    }


def _is_being_uploaded(run: Run) -> bool:
    return run.info.status == "RUNNING" and not processes.is_gone(run.data.tags.get(names.PROCESS, ""))


def _mark_damaged(client: MlflowClient, run_id: str, path: str) -> None:
    """Note that a file of a run was changed: sizes alone would not show it, and the next build uploads it again."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        retried(client.set_tag, run_id, names.DAMAGED, path)


def _damaged_file(client: MlflowClient, run_id: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).data.tags.get(names.DAMAGED)
    except MlflowException:
        # The run was deleted for good. Sizes alone decide then.
        return None
