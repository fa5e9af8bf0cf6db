"""Write a checkpoint in the format of another engine, keep that in the cache, and stage it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from steps.checkpoints.cache import cached
from steps.checkpoints.checkpoint import FILES, Checkpoint
from steps.checkpoints.generation import refuse_lost_settings
from steps.checkpoints.prompting import check_prompting
from steps.checkpoints.staging import link_checkpoint, staged
from steps.checkpoints.vocabulary import check_vocabulary
from steps.config.schema import BuildConfig
from steps.digests import digest, digest_files
from steps.output import activity
from steps.wrappers.manifest import MANIFEST, read_manifest


@dataclass(frozen=True)
class Export:
    """How a checkpoint is written for an engine.

    Attributes:
        engine: What the engine is called.
        write: Write a checkpoint's weights to a folder with its other files; takes both folders and the precision.
        files: The files that it writes.
        packages: Their versions decide what the files look like, together with the checkpoint and the precision.
        code: The files with the code that writes them.
    """

    engine: str
    write: Callable[[Path, Path, str], None]
    files: tuple[str, ...]
    packages: tuple[str, ...]
    code: tuple[Path, ...]

    @contextlib.contextmanager
    def stage(self, checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
        """Stage the cached export of a checkpoint with its tokenizer."""
        checkpoint.refuse_export(config.mode.name)
        # Before the export, which takes minutes.
        check_vocabulary(checkpoint.directory)
        refuse_lost_settings(checkpoint.directory)
        check_prompting(checkpoint.directory, config.prompting)
        source = self._exported(checkpoint, config.mode.name, config.precision.name)
        with staged(source, config.prompting, read_manifest(source), (*FILES, *self.files)) as folder:
            yield folder

    def _exported(self, checkpoint: Checkpoint, mode: str, precision: str) -> Path:
        """Return the cached export of a checkpoint. Variants that differ in other keys share it."""
        packages = [version(package) for package in self.packages]
        made_of = [checkpoint.sha256, precision, packages, digest_files([*self.code]), MANIFEST]

        def export(target: Path) -> None:
            target.rmdir()
            link_checkpoint(checkpoint.directory, target)
            for file in target.glob("*.safetensors*"):
                file.unlink()
            with activity(f"exporting for {self.engine}"):
                self.write(checkpoint.directory, target, precision)

        return cached(f"{mode}-{precision}-{digest(made_of)[:16]}", export)
