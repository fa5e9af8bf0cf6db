"""Stage the files that go into a logged model: a checkpoint with its prompting.

A staged folder is temporary. It holds hard links to the checkpoint's weights where the file system allows (MLflow
does not log through symbolic links), so that nothing is copied needlessly.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from steps.checkpoints.checkpoint import FILES
from steps.checkpoints.configuration import read_config
from steps.checkpoints.prompting import write_prompting
from steps.config.schema import Prompting
from steps.wrappers.manifest import POINTER, FileEntry, write_manifest
from steps.wrappers.shared_weights import link_or_copy


@contextlib.contextmanager
def staged(
    source: Path, prompting: Prompting, known: Mapping[str, FileEntry] | None = None, files: tuple[str, ...] = FILES
) -> Iterator[Path]:
    """Yield a temporary folder named `checkpoint` with the files of a logged model and their manifest.

    Args:
        source: Folder of the checkpoint.
        prompting: What to write into its chat template.
        known: Entries of files of the source that were computed already. Those that are linked keep them.
        files: Patterns of the files to take.
    """
    with TemporaryDirectory(prefix="phi3-") as temporary:
        folder = link_checkpoint(source, Path(temporary) / "checkpoint", files)
        write_prompting(folder, prompting)
        linked = {name for name in known or {} if _is_same_file(source / name, folder / name)}
        write_manifest(folder, {name: entry for name, entry in (known or {}).items() if name in linked})
        yield folder


def link_checkpoint(source: Path, target: Path, files: tuple[str, ...] = FILES) -> Path:
    """Fill a new folder with links to a checkpoint's files, without any reference to code of the checkpoint's own."""
    target.mkdir()
    for pattern in files:
        for file in source.glob(pattern):
            # A model's own pointer is written when its weights are stored.
            if file.name != POINTER:
                link_or_copy(file, target / file.name)
    for file in (target / "config.json", target / "tokenizer_config.json"):
        if file.is_file() and (content := read_config(file)) != json.loads(file.read_text(encoding="utf-8")):
            # Never through the link into the checkpoint.
            file.unlink()
            file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return target


def _is_same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.samefile(other)
