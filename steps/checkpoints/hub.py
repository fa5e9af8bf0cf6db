"""Checkpoints from the Hugging Face hub, at a pinned revision, in the cache of Hugging Face's client."""

from pathlib import Path

from steps.checkpoints.checkpoint import FILES
from steps.config.schema import HubModel
from steps.errors import StepError


def fetch(model: HubModel) -> tuple[Path, str]:
    """Return the folder of `model.repository` at `model.revision`, and the commit; download what is missing.

    Raises:
        StepError: The repository's name is malformed, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository = model.repository or ""
    try:
        directory = Path(snapshot_download(repository, revision=model.revision, allow_patterns=list(FILES)))
    except HFValidationError:
        raise StepError(
            "model.repository must be the hub's OWNER/NAME, for example microsoft/Phi-3-mini-4k-instruct, "
            f"got '{repository}'."
        ) from None
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError) as error:
        revision = f" at revision {model.revision}" if model.revision else ""
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise StepError(
            f"{repository}{revision} could not be fetched from the hub: {reason}. "
            "Without a hub, use model=miniature or a folder: -P model=local -P model.path=FOLDER."
        ) from error
    # The client names the folder after the commit.
    return directory, directory.name
