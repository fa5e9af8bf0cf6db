"""Stage the files that go into a logged model: a checkpoint with its prompting, in its precision.

A staged folder is temporary. It holds hard links to the checkpoint's weights where the file system allows (MLflow
does not log through symbolic links), so that nothing is copied needlessly.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from steps.checkpoints.checkpoint import checkpoint_files
from steps.checkpoints.configuration import read_config
from steps.checkpoints.prompting import write_prompting
from steps.config.schema import Prompting
from steps.output import suppress_output
from steps.wrappers.manifest import write_manifest


@contextlib.contextmanager
def staged(source: Path, prompting: Prompting, save: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary folder named `checkpoint` with the files of a logged model and their manifest.

    Args:
        source: The checkpoint.
        prompting: What to write into its chat template.
        save: Saves the weights of the first folder in another precision to the second; None to keep them.
    """
    with TemporaryDirectory(prefix="phi3-") as temporary:
        folder = Path(temporary) / "checkpoint"
        linked = link_checkpoint(source, Path(temporary) / "linked" if save else folder)
        write_prompting(linked, prompting)
        if save:
            save(linked, folder)
            _link_other_files(linked, folder)
        write_manifest(folder)
        yield folder


def link_checkpoint(source: Path, target: Path) -> Path:
    """Fill a new folder with links to a checkpoint's files, without any reference to code of the checkpoint's own."""
    target.mkdir()
    for file in checkpoint_files(source):
        _link(file, target / file.name)
    for file in (target / "config.json", target / "tokenizer_config.json"):
        if file.is_file() and (content := read_config(file)) != json.loads(file.read_text(encoding="utf-8")):
            # Never through the link into the checkpoint.
            file.unlink()
            file.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return target


def _link(file: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if it is on another file system."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


def save_as_bf16(source: Path, target: Path) -> None:
    """Save the weights as bf16, which halves the model's size on disk."""
    import torch
    from transformers import AutoModelForCausalLM

    with suppress_output():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, trust_remote_code=False)
        model.save_pretrained(target)


def _link_other_files(source: Path, target: Path) -> None:
    """Link every file that was not saved anew, except weights."""
    for file in source.iterdir():
        if not (target / file.name).exists() and not file.match("*.safetensors*"):
            _link(file, target / file.name)
