"""Make a model self-contained before it is registered: nothing else needs to exist to load it afterwards.

The large files that it shares with other variants are uploaded into the model itself. A tag that says where they are
shared is removed last. Until then the model is loaded from the shared place, so a kill in between leaves it as it was,
and the next call goes on.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from steps.errors import StepError
from steps.output import activity, suppress_output
from steps.store import integrity, names
from steps.store.shared_weights import own_and_shared
from steps.store.variants import Variant
from steps.wrappers.manifest import DamagedCheckpoint
from steps.wrappers.shared_weights import fetch

if TYPE_CHECKING:
    from mlflow import MlflowClient


def make_self_contained(client: MlflowClient, variant: Variant) -> None:
    """Upload the files that a variant's model shares into the model itself, unless it has them already.

    Raises:
        StepError: A shared file is missing or was changed, or the store has lost an upload.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model = client.get_logged_model(variant.model_id)
    if names.WEIGHTS_RUN not in model.tags:
        return
    manifest = integrity.read_manifest(model, variant)
    repository = get_artifact_repository(model.artifact_location)
    _, absent = own_and_shared(model, manifest, integrity.stored_files(client, variant.model_id))
    for path, entry in absent.items():
        place = PurePosixPath(path)
        with activity(f"uploading {place.name} into {variant.name}"), suppress_output():
            try:
                file = fetch(manifest["shared"]["location"], place.name, entry)
            except DamagedCheckpoint as damage:
                raise StepError(f"{integrity.broken_model(variant, [str(damage)])}.") from None
            repository.log_artifact(str(file), str(place.parent))  # type: ignore[no-untyped-call]
    _, lost = own_and_shared(model, manifest, integrity.stored_files(client, variant.model_id))
    if lost:
        raise StepError(f"The store has lost files of {variant.uri} or cut them short: {', '.join(lost)}.")
    try:
        client.delete_logged_model_tag(variant.model_id, names.WEIGHTS_RUN)
    except MlflowException:
        # Another register may have been faster.
        if names.WEIGHTS_RUN in client.get_logged_model(variant.model_id).tags:
            raise
