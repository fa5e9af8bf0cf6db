"""Check that a LoggedModel is, byte for byte, what `build` logged, without importing or unpickling any of it.

`seal` logs the manifest of a new model, `model_manifest.json`, to its run. `build` keeps the manifest's sha256 in a
tag of the model, so that a changed manifest is noticed too. `verify` reads the stored files again and returns every
fault. From a server, files are downloaded one at a time and removed again. Files that a model shares with others
(shared_weights.py) are in its manifest with their place, and are read there.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steps.digests import digest, digest_file
from steps.errors import StepError
from steps.output import suppress_output
from steps.redaction import redacted
from steps.store import names, shared_weights
from steps.store.pickles import holds_pickle, is_named_as_pickle
from steps.store.shared_weights import SharedFiles
from steps.store.variants import Variant, artifact_folder, load_artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

SHOWN_FILES = 3
MANIFEST = "model_manifest.json"
# The folder with the folder of the wrappers, whose name has changed once.
CODE = "code"
# MLflow writes this file into a model when it is registered.
REGISTRY_FILE = "registered_model_meta"
FLAVORS = ("python_function", "transformers")
BYTECODE = "__pycache__"
# How often bytecode is removed anew, and the seconds between, while another process loads the model.
REMOVALS, PAUSE = 20, 0.25
# A PythonModel from code, and MLflow's transformers flavor. Neither unpickles anything.
LOADERS = ("mlflow.pyfunc.loaders.code_model", "mlflow.transformers")


def seal(
    client: "MlflowClient", model_id: str, staged: Mapping[str, Mapping[str, Any]], shared: SharedFiles | None = None
) -> str:
    """Log the manifest of a new model to the active run and return the manifest's sha256.

    Args:
        client: MLflow's client.
        model_id: Id of the new model.
        staged: `bytes` and `sha256` of the files that were known before they were stored (the weights), by their
            path in the model. The store's copies must match; they are not downloaded again.
        shared: Those of them that the model shares, and where they are.

    Raises:
        StepError: The store has lost staged files or cut them short.
    """
    import mlflow

    location = client.get_logged_model(model_id).artifact_location
    elsewhere = shared["files"] if shared else {}
    files = {path: dict(entry) for path, entry in staged.items() if path not in elsewhere}
    stored = _files_without_bytecode(client, model_id, location)
    if lost := [path for path, entry in files.items() if stored.get(path) != entry["bytes"]]:
        raise StepError(f"The store has lost files of models:/{model_id} or cut them short: {', '.join(lost)}.")
    for path in stored.keys() - files.keys():
        with _local_file(location, path) as file:
            files[path] = {"bytes": stored[path], "sha256": digest_file(file)}
    if shared and (faults := shared_weights.lost(client, shared, elsewhere, location)):
        raise StepError(f"The store has lost files of models:/{model_id}: {', '.join(faults)}.")
    manifest = {"files": files, "code_sha256": _code_sha256(files)} | ({"shared": shared} if shared else {})
    mlflow.log_dict(manifest, MANIFEST)
    return digest(manifest)


def verify(client: "MlflowClient", variant: Variant) -> list[str]:
    """Return every fault of a variant's LoggedModel, by file; an empty list if it is what `build` logged."""
    model = client.get_logged_model(variant.model_id)
    if str(model.status) != "READY":
        return [f"its model is {model.status}"]
    stored = _files_without_bytecode(client, variant.model_id, model.artifact_location)
    if not stored:
        return [_nothing_stored(model)]
    # Before the manifest is read, because anyone who can plant a pickle can also change the manifest.
    if pickles := [path for path in stored if is_named_as_pickle(path)]:
        return [f"{path} is a pickle, which is never loaded" for path in pickles]
    try:
        manifest = read_manifest(model, variant)
        own, absent = shared_weights.own_and_shared(model, manifest, stored)
        stored = {path: size for path, size in stored.items() if path not in absent}
        faults = _differences(model.artifact_location, stored, own, manifest["code_sha256"])
        if absent:
            faults += shared_weights.faults(client, manifest["shared"], absent, model.artifact_location)
    except StepError as error:
        faults = list(error.faults)
    return faults + _loader_faults(model.artifact_location, stored)


def missing(client: "MlflowClient", variant: Variant) -> list[str]:
    """Return what a variant has lost: its model, files of it, or its manifest. Read the files only if sizes differ."""
    model = client.get_logged_model(variant.model_id)
    if not (stored := stored_files(client, variant.model_id)):
        return [_nothing_stored(model)]
    try:
        manifest = read_manifest(model, variant)
    except StepError as error:
        return list(error.faults)
    logged, absent = shared_weights.own_and_shared(model, manifest, stored)
    lost = sorted(logged.keys() - stored.keys())
    if not lost:
        # A file of another size was damaged or replaced: find out how.
        is_changed = any(stored[path] != entry["bytes"] for path, entry in logged.items())
        if is_changed:
            return verify(client, variant)
        return shared_weights.lost(client, manifest["shared"], absent, model.artifact_location) if absent else []
    more = f" and {len(lost) - SHOWN_FILES} more files" if len(lost) > SHOWN_FILES else ""
    verb = "are" if len(lost) > 1 else "is"
    where = redacted(model.artifact_location)
    return [f"{', '.join(lost[:SHOWN_FILES])}{more} {verb} missing from {where}"]


def broken_model(variant: Variant, faults: list[str]) -> str:
    """Return a sentence, without its full stop, about a model that is not what `build` logged."""
    return (
        f"{variant.name} ({variant.uri}) is refused: {', '.join(faults)}. Build and evaluate it again, or delete "
        f"it: `python -c \"import mlflow; mlflow.MlflowClient().delete_logged_model('{variant.model_id}')\"`"
    )


def _nothing_stored(model: "LoggedModel") -> str:
    return f"all files of its model are missing: there is nothing in {redacted(model.artifact_location)}"


def read_manifest(model: "LoggedModel", variant: Variant) -> dict[str, Any]:
    """Return the manifest that `build` logged; raise StepError if it is missing or was changed."""
    expected = model.tags.get(names.MANIFEST_SHA256)
    if expected is None:
        raise StepError(
            f"it has no tag {names.MANIFEST_SHA256}: this project did not build it, or before models had a manifest"
        )
    try:
        manifest: dict[str, Any] = load_artifact(variant, MANIFEST)
    except Exception as error:  # every kind of store fails in its own way
        raise StepError(
            f"{MANIFEST} of run {model.source_run_id} cannot be read ({type(error).__name__}) from "
            f"{artifact_folder(variant)}, so the model cannot be checked"
        ) from error
    if digest(manifest) != expected:
        raise StepError(f"{MANIFEST} of run {model.source_run_id} was changed")
    return manifest


def _differences(location: str, stored: dict[str, int], logged: dict[str, Any], code_sha256: str) -> list[str]:
    """Compare the stored files with the manifest and return one fault for each difference.

    Args:
        location: Artifact location of the model.
        stored: Size of each stored file, by its path in the model.
        logged: The entry of each file that `build` logged.
        code_sha256: The digest of the code that `build` logged.
    """
    paths = sorted(logged.keys() | stored.keys())
    faults = [_difference(location, path, stored.get(path), logged.get(path)) for path in paths]
    if not any(faults) and _code_sha256(logged) != code_sha256:
        faults.append(f"{CODE} is not the code that build logged")
    return [fault for fault in faults if fault]


def _difference(location: str, path: str, size: int | None, logged: dict[str, Any] | None) -> str | None:
    if size is None:
        return f"{path} is missing"
    if path == REGISTRY_FILE:
        return None
    if logged is None:
        return f"{path} is there, but build did not log it"
    if size != logged["bytes"]:
        problem = "cut short" if size < logged["bytes"] else "too long"
        return f"{path} is {problem}: {size} bytes, {logged['bytes']} were logged"
    with _local_file(location, path) as file:
        if (sha256 := digest_file(file)) != logged["sha256"]:
            return f"{path} was changed: sha256 {sha256}, {logged['sha256']} was logged"
        return f"{path} holds a pickle, which is never loaded" if holds_pickle(file) else None


def _loader_faults(location: str, stored: dict[str, int]) -> list[str]:
    """Return what MLmodel would make MLflow load that no model of this project has."""
    import yaml

    if "MLmodel" not in stored:
        return []
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C version is faster, but optional
    with _local_file(location, "MLmodel") as file:
        try:
            flavors = yaml.load(file.read_text(encoding="utf-8"), loader)["flavors"]
            function = flavors["python_function"]
            faults = [f"MLmodel has the flavor {name}" for name in flavors if name not in FLAVORS]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            return [f"MLmodel cannot be read ({type(error).__name__})"]
    if "python_model" in function:
        faults.append(f"MLmodel names a pickled model ({function['python_model']}), which is never loaded")
    if function.get("loader_module") not in LOADERS:
        faults.append(f"MLmodel would be loaded by {function.get('loader_module')}")
    return faults


def _code_sha256(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the same digest as `digest_code` does for the project's wrappers."""
    paths = {path: PurePosixPath(path).parts for path in files}
    return digest({"/".join(parts[2:]): files[path]["sha256"] for path, parts in paths.items() if parts[0] == CODE})


def _files_without_bytecode(client: "MlflowClient", model_id: str, location: str) -> dict[str, int]:
    """Remove compiled Python from a local model and return the size in bytes of every stored file, by its path.

    Loading a model in place writes bytecode next to its code. And if somebody had planted bytecode there, Python would
    run it instead of the code that is checked. If another process loads the model meanwhile, bytecode can appear after
    the removal: remove and list again. Bytecode that is on a server, or that cannot be removed, stays in the result.
    """
    folder = local_folder(location)
    for _ in range(REMOVALS):
        for parent, folders, _names in os.walk(folder) if folder else ():
            if BYTECODE in folders:
                shutil.rmtree(Path(parent, BYTECODE), ignore_errors=True)
        stored = stored_files(client, model_id)
        if folder is None or not any(PurePosixPath(path).name == BYTECODE for path in stored):
            break
        time.sleep(PAUSE)
    return stored


def stored_files(client: "MlflowClient", model_id: str, folder: str | None = None) -> dict[str, int]:
    """Return the size in bytes of every file in the store, by its path in the model.

    A folder of bytecode is one entry: its files come and go while they are listed.
    """
    files: dict[str, int] = {}
    for entry in client.list_logged_model_artifacts(model_id, folder):
        if entry.is_dir and PurePosixPath(entry.path).name != BYTECODE:
            files |= stored_files(client, model_id, entry.path)
        else:
            files[entry.path] = entry.file_size or 0
    return files


@contextlib.contextmanager
def local_copy(client: "MlflowClient", variant: Variant) -> Iterator[str]:
    """Yield a local folder with the variant's model: the store's own, or a download that is removed afterwards."""
    with _local_file(client.get_logged_model(variant.model_id).artifact_location) as folder:
        yield str(folder)


@contextlib.contextmanager
def _local_file(location: str, path: str = "") -> Iterator[Path]:
    """Yield a local path of one file of a model, or of the whole model, downloading it from a server if necessary."""
    import mlflow

    if folder := local_folder(location):
        yield folder / path
        return
    with TemporaryDirectory(prefix="phi3-") as temporary:
        # Hide the output of the download only, not of the block that uses it.
        with suppress_output():
            uri = f"{location}/{path}".rstrip("/")
            downloaded = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary)
        yield Path(downloaded)


def local_folder(location: str) -> Path | None:
    """Return the local folder of an artifact location; None if it is on a server."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    if not is_local_uri(location):  # type: ignore[no-untyped-call]
        return None
    return Path(local_file_uri_to_path(location))  # type: ignore[no-untyped-call]
