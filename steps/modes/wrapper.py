"""What our own modes share: the settings and the logging of a PythonModel from code."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steps.config.schema import BuildConfig, ModeSettings, key
from steps.errors import StepError
from steps.interfaces import get_interface
from steps.modes.mode import Mode, Pairs

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

    from steps.wrappers.engines.sampling import FloatArray

WRAPPERS = Path(__file__).parents[1] / "wrappers"
# Where they are inside a logged model.
CODE_FOLDER = "code/phi3_wrappers"
WEIGHTS_FOLDER = "artifacts/checkpoint"
# What every wrapper imports when it is loaded.
PACKAGES = (
    *("mlflow", "tokenizers", "jinja2", "numpy", "pandas", "prometheus-client", "llguidance"),
    # For weights that are shared with other models.
    *("filelock", "platformdirs"),
)
MODULES = ("mlflow.pyfunc", "mlflow.pyfunc.loaders.code_model")


@dataclass
class WrapperSettings(ModeSettings):
    """Settings of every engine."""

    max_batch_size: int = key(at_least=1, at_most=256)
    # What it was before there was one, for variants that were built then.
    prefix_cache_mb: int = key(0, at_least=0, at_most=2**20)

    @property
    def batch_size(self) -> int:
        """Return how many rows the engine answers at the same time."""
        return self.max_batch_size

    def engine(self, name: str, **more: Any) -> dict[str, Any]:
        """Return the name of the engine and what it is started with, for the configuration of a logged model."""
        return {"name": name, "max_batch_size": self.max_batch_size, "prefix_cache_mb": self.prefix_cache_mb} | more


def log_wrapper(config: BuildConfig, folder: Path, common: dict[str, Any], engine: dict[str, Any]) -> ModelInfo:
    """Log our PythonModel from code. The wrappers travel with it, and nothing is pickled.

    No model shares its code with another one: see wrappers/logged_model.py.

    Args:
        config: The variant.
        folder: The staged checkpoint.
        common: Keyword arguments of MLflow that all modes share.
        engine: The name of the engine, and what it is started with.
    """
    import mlflow

    interface = get_interface(config.interface)
    with _staged_code(config.mode.name) as code, _parameters_once():
        info: ModelInfo = mlflow.pyfunc.log_model(
            python_model=str(code / f"{config.mode.name}_model.py"),
            code_paths=[str(code / CODE_FOLDER)],
            artifacts={"checkpoint": str(folder)},
            model_config={
                "name": config.model.name,
                "interface": config.interface,
                "generation": asdict(config.generation),
                "engine": engine,
            },
            signature=_unchecked(interface.signature(config.generation)),
            **common | {"metadata": common["metadata"] | ({"task": interface.task} if interface.task else {})},
        )
    return info


def score_tokens(model: Any, pairs: Pairs, whole_vocabulary: bool) -> list[FloatArray]:
    """Return the log-probabilities of texts with one of our models; raises StepError if it was built before it could.

    See wrappers/scoring.py.
    """
    wrapper = model.unwrap_python_model()
    if not hasattr(wrapper, "score_tokens"):
        raise StepError("its model was built before models could score given texts: build it again.")
    scored: list[FloatArray] = wrapper.score_tokens(pairs, whole_vocabulary)
    return scored


def _unchecked(signature: ModelSignature) -> ModelSignature:
    """Have MLflow pass requests on unchanged: the wrapper's contract checks every field of them.

    MLflow's own enforcement refuses a whole number for a temperature, and repeats the prompt in its refusal. It skips
    models whose signature comes from type hints.
    """
    signature._is_signature_from_type_hint = True
    return signature


@contextlib.contextmanager
def _parameters_once() -> Iterator[None]:
    """Keep MLflow from logging a model's configuration to the run, which has all of it as parameters already."""
    from mlflow.tracking import fluent

    log_params = fluent.log_params
    fluent.log_params = lambda *_, **__: None
    try:
        yield
    finally:
        fluent.log_params = log_params


@contextlib.contextmanager
def _staged_code(mode: str) -> Iterator[Path]:
    """Yield a temporary folder with the wrappers and the file that loads them, arranged as inside the model."""
    with TemporaryDirectory(prefix="phi3-") as temporary:
        folder = Path(temporary)
        shutil.copytree(WRAPPERS, folder / CODE_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(WRAPPERS / "logged_model.py", folder / f"{mode}_model.py")
        yield folder


# Makes a mode that logs our PythonModel. These values are the same for all such modes.
wrapper_mode = partial(
    Mode,
    weights_folder=WEIGHTS_FOLDER,
    shares_weights=True,
    core_checks=("all", "wrappers", "exact"),
    batches=True,
    streams=True,
    takes_params=True,
    takes_whole_prompts=True,
    seed=None,
    score_tokens=score_tokens,
)
