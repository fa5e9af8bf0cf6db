"""The whole context of a checkpoint with LongRoPE.

Such a checkpoint has short factors up to the length that it was pretrained with, and long ones beyond. transformers
changes to the long ones when a sequence gets longer. Everything cached for it until then is wrong from then on, while
other rows of the batch still need the short ones. So without `model.long_context` the context ends at the shorter
length. With it every prompt gets the long factors, whatever its length, and the context is the whole one: a prompt
beyond the shorter length is answered as by transformers.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.checkpoints.cache import cached
from steps.checkpoints.configuration import ROPE_KEYS, attention_scaling, load_config, read_config
from steps.checkpoints.staging import link_checkpoint
from steps.digests import digest, digest_files
from steps.errors import StepError
from steps.wrappers.manifest import MANIFEST, FileEntry

ORIGINAL = "original_max_position_embeddings"


def with_long_context(directory: Path, manifest: dict[str, FileEntry]) -> Path:
    """Return the folder of the same checkpoint with the long factors for every prompt.

    Args:
        directory: Folder of a checkpoint in Hugging Face layout.
        manifest: Its files.

    Raises:
        StepError: It has no LongRoPE.
    """
    content = read_config(directory / "config.json")
    key = _longrope_key(content)
    if key is None:
        raise StepError(
            f"model.long_context=true needs a checkpoint with LongRoPE, and '{directory}/config.json' has no "
            "long_factor: leave it out."
        )
    if limit(directory) is None:
        return directory
    made_of = [digest(manifest), version("transformers"), digest_files([Path(__file__)]), MANIFEST]

    def make(target: Path) -> None:
        config = load_config(directory)
        longest = config.max_position_embeddings
        rope = content[key] | {"short_factor": content[key]["long_factor"], ORIGINAL: longest}
        rope["attention_factor"] = attention_scaling(config)
        target.rmdir()
        link_checkpoint(directory, target)
        # Never through the link into the checkpoint.
        (target / "config.json").unlink()
        changed = content | {key: rope, ORIGINAL: longest}
        (target / "config.json").write_text(json.dumps(changed, indent=2), encoding="utf-8")

    return cached(f"long-{digest(made_of)[:16]}", make)


def limit(directory: Path) -> tuple[int, int] | None:
    """Return the context of a checkpoint and the whole one that LongRoPE offers; None if they are the same."""
    if _longrope_key(read_config(directory / "config.json")) is None:
        return None
    config = load_config(directory)
    shorter, whole = config.original_max_position_embeddings, config.max_position_embeddings
    return (shorter, whole) if shorter < whole else None


def _longrope_key(content: dict[str, Any]) -> str | None:
    """Return the key of a configuration that holds the factors."""
    return next((key for key in ROPE_KEYS if "long_factor" in (content.get(key) or {})), None)
