"""Load metrics of the `evaluate` library: those of this project, those of a user's own files, those of the hub."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from steps.errors import StepError, unknown
from steps.output import suppress_output

METRICS = Path(__file__).parent / "metrics"
HELPERS = ("__init__", "choices", "normalize", "row_metric", "rules")
# By the name `fidelity`: how far a variant's distributions are from those of a reference (fidelity.py).
FIDELITY_NAME = "fidelity"
# The part of a ruler that says which variant that is. Each checkpoint has its own.
REFERENCE = "reference"
FIDELITY = ("fidelity/kl", "fidelity/flips", "fidelity/first_divergence")
# The metrics that read no answers but the likelihoods of given ones, and the field of a row that holds those.
LIKELIHOODS = {"choice_match": "choices", "choice_match_norm": "choices", "perplexity": "targets"}
JUDGE = "judge"


def metric_name(source: str) -> str:
    """Return the name of a metric that is given by its name, its address on the hub, or the path of its file."""
    return source.rstrip("/").rpartition("/")[2].removesuffix(".py")


def metric_file(source: str) -> Path | None:
    """Return the file of a shipped metric or of one given by a path; None for a metric of the hub."""
    path = Path(source)
    files = [METRICS / f"{source}.py"] if source in local_metrics() else [path, path / f"{path.name}.py"]
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


def loaded_folder(metric: Any) -> Path:
    """Return the folder with the files of a loaded metric."""
    return Path(str(sys.modules[type(metric).__module__].__file__)).parent


def local_metrics() -> list[str]:
    """Return the names of the metrics that need no hub."""
    return sorted(file.stem for file in METRICS.glob("*.py") if file.stem not in HELPERS)


def load_metrics(sources: Iterable[str]) -> dict[str, Any]:
    """Load metrics of the `evaluate` library and return them by name; raises StepError with all that fail."""
    loaded: dict[str, Any] = {}
    faults: list[str] = []
    for source in sources:
        try:
            loaded[metric_name(source)] = _load(source)
        except (Exception, SystemExit) as error:  # whatever a module of the user's own or the hub's client raises
            faults.append(_load_fault(source, error))
    if faults:
        raise StepError(*faults)
    return loaded


def _load(source: str) -> Any:
    with _hidden("transformers"):
        import evaluate

    if file := metric_file(source):
        try:
            return evaluate.load(str(file))
        except TypeError as error:
            if "'NoneType' object is not callable" in str(error):
                raise ValueError("it defines no class that is an evaluate.Metric") from error
            raise
    with suppress_output():
        return evaluate.load(source)


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Hide an optional dependency during an import (`evaluate` would import transformers: ten seconds)."""
    if package in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]


def _load_fault(name: str, error: BaseException) -> str:
    reason = type(error).__name__
    if metric_file(name):
        return f"metric {name} cannot be loaded: {reason}: {error}"
    return f"{unknown('metric', name, local_metrics())} Others are loaded from the hub, which gave: {reason}."
