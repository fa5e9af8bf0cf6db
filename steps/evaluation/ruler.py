"""The ruler of an evaluation: the metrics to compute, and a digest of everything that their scores depend on.

The mark of a scorecard holds the digests of its ruler. If one differs, the scorecard is out of date: `evaluate` scores
its answers again, and `register` does not compare it with others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steps.config.paths import from_user
from steps.config.schema import EvaluateConfig, Judge
from steps.digests import digest, digest_file
from steps.errors import StepError
from steps.evaluation import contract_suite, metric_loading
from steps.evaluation.source_digest import digest_folder, digest_module
from steps.store.variants import Variant

CONTRACT = "contract"
# How scores become a scorecard, whatever the metric.
SCORING = tuple(Path(__file__).with_name(f"{name}.py") for name in ("scores", "statistics"))
JUDGING = Path(__file__).with_name("judge.py")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Ruler:
    """What variants are measured by.

    Attributes:
        metrics: The names of the metrics to compute, with the judge.
        first: The metric that variants are compared by.
        sources: What each metric but the judge is loaded from, by name.
        digests: By metric, a digest of its code, its helpers and its libraries; of the judge, what it is asked.
        judge: The judge; None without one.
    """

    metrics: tuple[str, ...]
    first: str
    seed: int = 0
    repeats: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None

    def asked(self, variant: Variant) -> dict[str, int]:
        """Return how a variant is asked. A greedy one answers the same whatever the seed, and is asked once."""
        return {} if variant.config.generation.greedy else {"seed": self.seed, "repeats": self.repeats}

    @property
    def own_sources(self) -> dict[str, str]:
        """Return what each metric that is not shipped is loaded from, wherever the next command is typed."""
        shipped = metric_loading.local_metrics()
        own = {name: source for name, source in self.sources.items() if source not in shipped}
        return {name: str(Path(source).resolve()) if Path(source).exists() else source for name, source in own.items()}

    def parts(self, variant: Variant) -> dict[str, str]:
        """Return the digest of each metric and of the checks of the variant's contract."""
        return dict(self.digests) | {CONTRACT: contract_suite.digest_of(variant.interface.name)}


def make(config: EvaluateConfig) -> Ruler:
    """Return the ruler that a configuration names; raises StepError with every metric that cannot be loaded."""
    judge = config.evaluate.judge if config.evaluate.judge.model else None
    sources = _sources([*config.evaluate.metrics, *config.prompt_set.metrics])
    digests = _metric_digests(sources)
    if judge:
        digests[metric_loading.JUDGE] = _judge_digest(judge)
    return Ruler(
        metrics=(*sources, *([metric_loading.JUDGE] if judge else [])),
        first=metric_loading.metric_name([*config.prompt_set.metrics, *config.evaluate.metrics][0]),
        seed=config.evaluate.seed,
        repeats=config.evaluate.repeats,
        sources=sources,
        digests=digests,
        judge=judge,
    )


def _sources(listed: list[str]) -> dict[str, str]:
    """Return what each metric is loaded from, by its name."""
    sources: dict[str, str] = {}
    shipped = metric_loading.local_metrics()
    for source in listed:
        name = metric_loading.metric_name(source)
        if source not in shipped and metric_loading.metric_file(typed := from_user(source)):
            source = typed
        if sources.setdefault(name, source) != source:
            raise StepError(
                f"evaluate.metrics has two metrics called {name}: {sources[name]} and {source}. Rename one."
            )
    return sources


def _metric_digests(sources: Mapping[str, str]) -> dict[str, str]:
    base = [digest_file(file) for file in SCORING]
    # Metrics that are not ours are loaded now: a fault in one should show before anything is built or asked.
    shipped = metric_loading.local_metrics()
    loaded = metric_loading.load_metrics(source for source in sources.values() if source not in shipped)
    digests: dict[str, str] = {}
    for name, source in sources.items():
        file = metric_loading.metric_file(source)
        # A metric of the hub has files only when it is loaded.
        code = _file_digest(name, file) if file else digest_folder(metric_loading.loaded_folder(loaded[name]))
        digests[name] = _short([*base, code])
    return digests


def _file_digest(name: str, file: Path) -> str:
    try:
        # `evaluate` keeps a metric with files of its own in a folder of the same name.
        return digest_folder(file.parent) if file.parent.name == file.stem else digest_module(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise StepError(f"metric {name} cannot be loaded: {type(error).__name__}: {error}") from error


def _judge_digest(judge: Judge) -> str:
    """Return a digest of what a judge is asked, and which kind of address answers: not its port or its password."""
    host = urlsplit(str(judge.address)).hostname
    asked: list[Any] = [judge.model, judge.instructions, "local" if host in LOOPBACK else host]
    return _short([*asked, *(digest_file(file) for file in (*SCORING, JUDGING)), metadata.version("mlflow")])


def _short(content: object) -> str:
    """Return a digest that fits into a tag together with many others."""
    return digest(content)[:16]
