"""Checkpoints from the Hugging Face hub, in the cache of Hugging Face's client.

A branch is resolved to its commit first. What is missing is counted before it is downloaded. A download that was cut
off goes on where it stopped: run the same command again.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps.checkpoints.checkpoint import FILES
from steps.checkpoints.disk_space import free_bytes
from steps.checkpoints.download import begun_bytes, download_large_files, progress_class
from steps.config.schema import HubModel
from steps.errors import StepError, reason
from steps.output import echo, suppress_output

WITHOUT_A_HUB = "Without a hub, use model=miniature or a folder: -P model=local -P model.path=FOLDER."


def fetch(model: HubModel) -> tuple[Path, str]:
    """Return the folder of `model.repository` at `model.revision`, and the commit; download what is missing.

    Raises:
        StepError: The repository's name is malformed, it cannot be fetched, or the disk has no room for it.
    """
    repository, folder = model.repository or "", (model.subfolder or "").strip("/")
    with _plain_errors(model):
        snapshot = _download(repository, model.revision, [f"{folder}/{name}".lstrip("/") for name in FILES])
    # The client names the folder after the commit.
    if model.revision != snapshot.name:
        echo(f"{repository} at {model.revision or 'its main branch'} is commit {snapshot.name}.")
    if folder and not (snapshot / folder).is_dir():
        raise StepError(f"{repository} at commit {snapshot.name} has no folder {folder}: check model.subfolder.")
    return snapshot / folder, snapshot.name


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Return the snapshot in the client's cache, downloading the missing files."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, OfflineModeIsEnabled

    wanted: dict[str, Any] = {"allow_patterns": patterns, "tqdm_class": progress_class()}
    try:
        with suppress_output():  # bars of a few milliseconds
            files = snapshot_download(repository, revision=revision, dry_run=True, **wanted)
    except (DryRunError, OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException) as error:
        try:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True, **wanted))
        except OSError:
            raise error.__cause__ or error from None
    if not files:
        raise StepError(f"{repository} has none of the files of a checkpoint ({', '.join(patterns)}).")
    # Files by their commit: a branch may move meanwhile.
    commit = files[0].commit_hash
    if missing := {file.filename: file.file_size or 0 for file in files if file.will_download}:
        _check_room(repository, commit, missing)
        download_large_files(repository, commit, missing)
    return Path(snapshot_download(repository, revision=commit, **wanted))


def _check_room(repository: str, commit: str, files: dict[str, int]) -> None:
    """Print what will be downloaded; raise StepError if it does not fit on the disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    size = sum(files.values()) - begun_bytes(repository, commit)
    cache = Path(HF_HUB_CACHE)
    free = free_bytes(cache)
    if size > free:
        raise StepError(
            f"{repository} does not fit on the disk of {cache}: {size:,} bytes are to be downloaded, {free:,} are "
            "free. Free some space, or set HF_HOME to a folder on a larger disk."
        )
    echo(f"Downloading {len(files)} files of {repository} ({size:,} bytes; {free:,} free) at commit {commit} …")


@contextmanager
def _plain_errors(model: HubModel) -> Iterator[None]:
    """Turn the errors of the hub and its client into one sentence each."""
    from huggingface_hub import errors

    name = model.repository or ""
    revision = f" at revision {model.revision}" if model.revision else ""
    try:
        yield
    except errors.HFValidationError:
        raise StepError(
            "model.repository must be the hub's OWNER/NAME, for example microsoft/Phi-3-mini-4k-instruct, got "
            f"'{name}'."
        ) from None
    except errors.GatedRepoError as error:
        raise StepError(
            f"{name} is gated: accept its terms on its page of the hub, and set HF_TOKEN to a token of that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StepError(
            f"{name} is not on the hub, or is private: check model.repository, and set HF_TOKEN if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StepError(
            f"{name} has no revision {model.revision}: check model.revision, or leave it out for the main branch."
        ) from error
    except StepError:
        raise
    except Exception as error:  # the hub's, those of its client and of the connection, and those of the disk
        raise StepError(f"{name}{revision} could not be fetched from the hub: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """Return what went wrong on the way to the hub, and what to do."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if response is not None and status == 429:
        wait = response.headers.get("Retry-After")
        when = f"in {wait} seconds" if wait else "later"
        return f"it allows no more requests for now (HTTP 429). Run the command again {when}, or set HF_TOKEN."
    if status in (401, 403):
        return f"it refuses the request (HTTP {status}). Set HF_TOKEN to a valid token that may read the repository."
    if status is not None:
        return f"it answers with HTTP {status}. Run the command again later. {WITHOUT_A_HUB}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk of the cache is full. Free some space, or set HF_HOME, and run the command again: it goes on."
    text = reason(error).partition(". ")[0].rstrip(".")
    return f"{text}. Run the command again to go on where it stopped. {WITHOUT_A_HUB}"
