"""Whether a LoggedModel is, byte for byte, what `build` logged; nothing of it is imported or unpickled here.

`seal` writes the manifest of a new model, `model_manifest.json` on its run, and returns the manifest's sha256:
`build` keeps it in a tag beside the fingerprint, so that a changed manifest is seen too. `verify` reads the
stored files again and tells every fault. Of a model on a server one file at a time is fetched and removed.
"""

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from steps.digests import digest, sha256_of
from steps.errors import StepError
from steps.output import suppress_output
from steps.store.variants import Variant, load_artifact

TAG = "phi3.manifest_sha256"
FILE = "model_manifest.json"
CODE = "code/wrappers"
# Written into the model by MLflow when it is registered: the name and the version.
BY_THE_REGISTRY = "registered_model_meta"
PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".cloudpickle")
# What loads our models, neither of which unpickles: a PythonModel's code, and MLflow's transformers flavour.
LOADERS = ("mlflow.pyfunc.loaders.code_model", "mlflow.transformers")


def seal(client: Any, model_id: str, staged: dict[str, dict[str, Any]]) -> str:
    """Log the manifest of a new model to the active run; returns its sha256.

    `staged` maps the path of each file that is known before it is stored (the weights) to its `bytes` and `sha256`,
    so that what the store made of it is not taken for the truth, nor fetched from a server again.
    """
    import mlflow

    model = client.get_logged_model(model_id)
    files = {path: dict(entry) for path, entry in staged.items()}
    _drop_bytecode(model.artifact_location)
    listed = _listed(client, model_id)
    if lost := [path for path, entry in files.items() if listed.get(path) != entry["bytes"]]:
        raise StepError(f"The store lost or cut short files of models:/{model_id}: {', '.join(lost)}.")
    for path in listed.keys() - files.keys():
        with _opened(model.artifact_location, path) as file:
            files[path] = {"bytes": listed[path], "sha256": sha256_of(file)}
    manifest = {"files": files, "code_sha256": _code_sha256(files)}
    mlflow.log_dict(manifest, FILE)
    return digest(manifest)


def verify(client: Any, variant: Variant) -> list[str]:
    """What is wrong with a variant's LoggedModel, by the file; nothing if it is what `build` logged."""
    model = client.get_logged_model(variant.model_id)
    if str(model.status) != "READY":
        return [f"its model is {model.status}"]
    _drop_bytecode(model.artifact_location)
    listed = _listed(client, variant.model_id)
    # First, since a manifest can be written by whoever writes a pickle.
    if refused := [f"{path} is a pickle, which is never loaded" for path in listed if _named_as_pickle(path)]:
        return refused
    try:
        manifest = _manifest(model, variant)
    except StepError as error:
        return [*error.faults, *_loader_faults(model.artifact_location, listed)]
    return _differences(model.artifact_location, listed, manifest) + _loader_faults(model.artifact_location, listed)


def _manifest(model: Any, variant: Variant) -> dict[str, Any]:
    """The manifest that `build` logged; raises StepError where there is none or another one."""
    expected = model.tags.get(TAG)
    if expected is None:
        raise StepError(f"it has no tag {TAG}: it was not built by this project, or before models had a manifest")
    try:
        manifest = load_artifact(variant, FILE)
    except Exception as error:  # a store, a server or a folder may each lose a file in its own way
        raise StepError(
            f"{FILE} of run {model.source_run_id} cannot be read ({type(error).__name__}): nothing to check by"
        ) from error
    if digest(manifest) != expected:
        raise StepError(f"{FILE} of run {model.source_run_id} was changed")
    return manifest


def _differences(location: str, listed: dict[str, int], manifest: dict[str, Any]) -> list[str]:
    """Each file that is missing, extra, cut short, changed or pickled, and whether the code is the same."""
    logged, found, faults = manifest["files"], {}, []
    for path in sorted(logged.keys() | listed.keys()):
        if path not in listed:
            faults.append(f"{path} is missing")
        elif path == BY_THE_REGISTRY:
            continue
        elif path not in logged:
            faults.append(f"{path} is there, but build did not log it")
        elif listed[path] != logged[path]["bytes"]:
            kind = "cut short" if listed[path] < logged[path]["bytes"] else "too long"
            faults.append(f"{path} is {kind}: {listed[path]} bytes, {logged[path]['bytes']} were logged")
        else:
            with _opened(location, path) as file:
                found[path] = {"sha256": sha256_of(file)}
                pickled = _holds_pickle(file)
            if found[path]["sha256"] != logged[path]["sha256"]:
                faults.append(
                    f"{path} was changed: sha256 {found[path]['sha256']}, {logged[path]['sha256']} was logged"
                )
            elif pickled:
                faults.append(f"{path} holds a pickle, which is never loaded")
    if not faults and _code_sha256(found) != manifest["code_sha256"]:
        faults.append(f"{CODE} is other code than build logged")
    return faults


def _loader_faults(location: str, listed: dict[str, int]) -> list[str]:
    """What MLmodel would have MLflow unpickle or import that none of our models has."""
    import yaml

    if "MLmodel" not in listed:
        return []
    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the faster one, where there is one
    with _opened(location, "MLmodel") as file:
        try:
            flavors = yaml.load(file.read_text(encoding="utf-8"), safe)["flavors"]
            faults = [
                f"MLmodel has the flavor {name}" for name in flavors if name not in ("python_function", "transformers")
            ]
            function = flavors["python_function"]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            return [f"MLmodel cannot be read ({type(error).__name__})"]
    if "python_model" in function:
        faults.append(f"MLmodel names a pickled model ({function['python_model']}), which is never loaded")
    if function.get("loader_module") not in LOADERS:
        faults.append(f"MLmodel would be loaded by {function.get('loader_module')}")
    return faults


def _code_sha256(files: dict[str, dict[str, Any]]) -> str:
    """As digests.digest_code gives it for the wrappers of the project."""
    return digest(
        {path.removeprefix(f"{CODE}/"): entry["sha256"] for path, entry in files.items() if path.startswith(f"{CODE}/")}
    )


def _listed(client: Any, model_id: str, folder: str | None = None) -> dict[str, int]:
    """Every file in the store, by its path in the model, and its size in bytes."""
    files = {}
    for entry in client.list_logged_model_artifacts(model_id, folder):
        files |= _listed(client, model_id, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return files


@contextlib.contextmanager
def _opened(location: str, path: str = "") -> Iterator[Path]:
    """A file or all of a model on this machine: where it lies, or fetched from a server for as long as it is needed."""
    import mlflow

    if folder := local_folder(location):
        yield folder / path
        return
    with TemporaryDirectory(prefix="phi3-") as temporary:
        with suppress_output():
            address = f"{location}/{path}".rstrip("/")
            fetched = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=temporary)
        yield Path(fetched)


@contextlib.contextmanager
def at_hand(client: Any, variant: Variant) -> Iterator[str]:
    """The folder of a variant's model on this machine, for as long as it is needed."""
    with _opened(client.get_logged_model(variant.model_id).artifact_location) as folder:
        yield str(folder)


def local_folder(location: str) -> Path | None:
    """The folder of an artifact location on this machine; None for a server's."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(location)) if is_local_uri(location) else None


def _drop_bytecode(location: str) -> None:
    """Remove what Python compiled beside the code when the model was loaded where it lies.

    It belongs to no model, and Python would run a planted one instead of the code that is checked.
    """
    if folder := local_folder(location):
        for cached in folder.rglob("__pycache__"):
            shutil.rmtree(cached, ignore_errors=True)


def _named_as_pickle(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in PICKLES


def _holds_pickle(file: Path) -> bool:
    """Whether a file under another name is a pickle (protocol 2 or later), or torch's archive with one."""
    with file.open("rb") as opened:
        start = opened.read(4)
    if start == b"PK\x03\x04":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            return any(_named_as_pickle(name) for name in archive.namelist())
    return len(start) > 1 and start[0] == 0x80 and start[1] in range(2, 6)
