"""Where a checkpoint comes from: the miniature, a hub repository at a pinned revision, or a folder.

Whatever the source, what comes out is a folder with weights, tokenizer and chat template. Code is
never taken from a checkpoint: its Python files are left behind, and pickled weights are refused.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steps.checkpoints import faults
from steps.config.schema import Model
from steps.digests import digest, digest_files, sha256_of
from steps.errors import StepError
from steps.wrappers import manifest as whole

# What a checkpoint may hold, in Hugging Face and in ONNX GenAI layout: neither code nor pickles.
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.onnx", "*.onnx.data", "*.onnx_data")
LAYOUTS = {"huggingface": ("config.json", "tokenizer.json"), "genai": ("genai_config.json", "tokenizer.json")}
NO_HUB = "Without a hub take model=miniature, or a folder: -P model=local -P model.path=FOLDER."


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights and tokenizer; `layout` is huggingface or genai (ONNX)."""

    directory: Path
    layout: str
    revision: str | None
    manifest: dict[str, str]

    @property
    def sha256(self) -> str:
        return digest(self.manifest)

    @property
    def bytes(self) -> int:
        return sum((self.directory / name).stat().st_size for name in self.manifest)


def resolve(model: Model) -> Checkpoint:
    """Have the checkpoint on this machine, training or downloading it where it is not yet."""
    revision = None
    if model.source == "miniature":
        directory = _miniature(model.seed)
    elif model.source == "hub":
        directory = _from_hub(model.repository, model.revision)
        revision = directory.name
    else:
        directory = Path(model.path).expanduser()
    layout = _layout(directory)
    manifest = _manifest(directory)
    if found := faults.faults(directory, manifest):
        raise StepError(*found)
    return Checkpoint(directory, layout, revision, manifest)


def _manifest(directory: Path) -> dict[str, str]:
    """The sha256 of each file that is taken from a checkpoint, by its name."""
    files = {path.name: path for pattern in FILES for path in directory.glob(pattern)}
    return {name: sha256_of(files[name]) for name in sorted(files) if name != whole.MANIFEST}


def cache_directory() -> Path:
    """The user's cache directory: PHI3_CACHE_DIR, or where the platform keeps caches."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("PHI3_CACHE_DIR") or user_cache_path("phi3-mlflow"))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `make` fills it if it is not there or damaged, once, whole or not at all."""
    from filelock import FileLock

    target = cache_directory() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_dir() and not _is_whole(target):
                shutil.rmtree(target)
            if not target.is_dir():
                _make_whole(target, make)
    except OSError as error:
        raise StepError(
            f"The cache {target.parent} cannot be used ({error.strerror or error}): "
            "set PHI3_CACHE_DIR to a folder that can be written."
        ) from error
    return target


def _make_whole(target: Path, make: Callable[[Path], None]) -> None:
    # A killed maker leaves only a folder that the next one removes.
    for left_over in target.parent.glob(f"{target.name}.making-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{target.name}.making-", dir=target.parent))
    try:
        make(making)
        whole.write_manifest(making)
        making.rename(target)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def _is_whole(directory: Path) -> bool:
    """Whether a folder of the cache is as it was made; what is wrong with it is said."""
    try:
        whole.check(directory)
    except whole.DamagedCheckpoint as fault:
        print(f"{directory} in the cache is damaged and is made again: {fault}.", flush=True)
        return False
    return True


def _miniature(seed: int) -> Path:
    from importlib.metadata import version

    from steps.checkpoints import miniature

    code = digest_files([Path(miniature.__file__), miniature.FACTS])
    name = digest([seed, code, version("torch"), version("transformers"), whole.MANIFEST])[:16]

    def train(directory: Path) -> None:
        print(f"Training the miniature Phi-3 (once; it is kept in {cache_directory()}) …", flush=True)
        miniature.train_miniature(directory, seed)

    return made_once(f"miniature-{name}", train)


def _from_hub(repository: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except HFValidationError:
        raise StepError(
            f"model.repository must be OWNER/NAME of the hub, as microsoft/Phi-3-mini-4k-instruct, got '{repository}'."
        ) from None
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise StepError(f"{repository}{at} could not be fetched from the hub: {reason}. {NO_HUB}") from error


def _layout(directory: Path) -> str:
    """Tell the layout of a folder, or refuse it with what is missing."""
    if not directory.is_dir():
        raise StepError(f"model.path must be a folder, got '{directory}', which does not exist.")
    for layout, needed in reversed(LAYOUTS.items()):
        if all((directory / name).is_file() for name in needed):
            return _with_weights(directory, layout)
    wanted = " or ".join(f"{' and '.join(needed)} ({layout} layout)" for layout, needed in LAYOUTS.items())
    raise StepError(f"'{directory}' is no checkpoint: it must hold {wanted}.")


def _with_weights(directory: Path, layout: str) -> str:
    pattern = "*.safetensors" if layout == "huggingface" else "*.onnx"
    if not any(directory.glob(pattern)):
        raise StepError(f"'{directory}' holds no {pattern} weights; pickled weights (*.bin, *.pt) are never loaded.")
    return layout
