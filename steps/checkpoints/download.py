"""Download large files of the hub so that a killed download goes on where it stopped.

Hugging Face's client goes on after a lost connection, but it deletes what it has when its process ends. So a large file
is downloaded to `FILE.part` in the client's own folder first. When it is complete and its sha256 is right, it gets the
name under which the client looks for it.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

from steps.digests import digest_file
from steps.errors import StepError
from steps.output import echo

# Smaller files are fetched again from their start.
LARGE = 10_000_000
# How often a lost connection is tried again without any byte coming in.
ATTEMPTS = 5
# Where no terminal shows a bar: the seconds between two lines of progress.
LINE_SECONDS = 30
SHA256 = re.compile("[0-9a-f]{64}")


def download_large_files(repository: str, commit: str, files: dict[str, int]) -> None:
    """Download the large ones of some files into the client's cache.

    Args:
        repository: OWNER/NAME.
        commit: The revision.
        files: Size of each file by its name.

    Raises:
        StepError: A file is not the one that the hub lists.
    """
    from filelock import FileLock
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    for name in sorted(name for name, size in files.items() if size >= LARGE):
        url = hf_hub_url(repository, name, revision=commit)
        metadata = get_hf_file_metadata(url)
        target = _blobs(repository) / str(metadata.etag)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target, commit)
        with FileLock(f"{part}.lock"):
            if not target.exists():
                _fetch(url, metadata.size or 0, part, name)
                _check_sha256(repository, name, part, target.name)
                part.rename(target)
        Path(f"{part}.lock").unlink(missing_ok=True)


def begun_bytes(repository: str, commit: str) -> int:
    """Return how many bytes an earlier download of a commit has left to go on from."""
    return sum(part.stat().st_size for part in _blobs(repository).glob(f"*.{commit[:8]}.part"))


def progress_class() -> type:
    """Return the class of the client's bars: as usual on a terminal, a line now and then elsewhere."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    if sys.stderr.isatty() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        return tqdm

    class Lines(tqdm):
        """A bar that is printed anew every LINE_SECONDS."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            settings |= {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call]

    return Lines


def _fetch(url: str, size: int, part: Path, name: str) -> None:
    """Download the rest of a file: append the bytes that `part` does not have yet."""
    import httpx
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    fruitless = 0
    with part.open("ab") as file:
        while (begun := file.tell()) != size:
            if begun:
                echo(f"Going on with {name} at {begun:,} of {size:,} bytes …")
            try:
                http_get(
                    url,
                    file,
                    resume_size=begun,
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=name,
                    tqdm_class=progress_class(),
                )
            except httpx.TransportError:
                fruitless = fruitless + 1 if file.tell() == begun else 0
                if fruitless == ATTEMPTS:
                    raise


def _check_sha256(repository: str, name: str, part: Path, expected: str) -> None:
    """Remove a file that is not the one that the hub lists, and raise StepError."""
    # The hub names only large files by their sha256.
    if SHA256.fullmatch(expected) and (sha256 := digest_file(part)) != expected:
        part.unlink()
        raise StepError(
            f"{name} of {repository} arrived damaged: the hub lists sha256 {expected}, got {sha256}. It was removed; "
            "run the command again to fetch it anew."
        )


def _blobs(repository: str) -> Path:
    """Return the folder in which the client keeps the files of a repository by their etag."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"


def _part(target: Path, commit: str) -> Path:
    return target.with_name(f"{target.name}.{commit[:8]}.part")
