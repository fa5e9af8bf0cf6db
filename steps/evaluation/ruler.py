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
FIDELITY_CODE, LIKELIHOOD_CODE = (Path(__file__).with_name(f"{name}.py") for name in ("fidelity", "likelihoods"))
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
        references: By model id, the variant that fidelity is measured against; empty without fidelity.
    """

    metrics: tuple[str, ...]
    first: str
    seed: int = 0
    repeats: int = 1
    sources: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None
    references: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Return False if no metric reads a generated answer, and each row has choices to take its answer from."""
        others = [name for name in self.metrics if name not in metric_loading.FIDELITY]
        kinds = {metric_loading.LIKELIHOODS.get(name, "") for name in others}
        return "" in kinds or "choices" not in kinds

    def asked(self, variant: Variant) -> dict[str, int]:
        """Return how a variant is asked. A greedy one answers the same whatever the seed, and is asked once."""
        is_same = variant.config.generation.greedy or not self.generates
        return {} if is_same else {"seed": self.seed, "repeats": self.repeats}

    def metrics_of(self, variant: Variant) -> tuple[str, ...]:
        """Return the metrics that a variant is scored by: the first, and those that its mode can have."""
        left_out = [name for names in self.left_out(variant) for name in names]
        return tuple(name for name in self.metrics if name == self.first or name not in left_out)

    @property
    def own_sources(self) -> dict[str, str]:
        """Return what each metric that is not shipped is loaded from, wherever the next command is typed."""
        shipped = metric_loading.local_metrics()
        own = {name: source for name, source in self.sources.items() if source not in shipped}
        return {name: str(Path(source).resolve()) if Path(source).exists() else source for name, source in own.items()}

    def left_out(self, variant: Variant) -> dict[tuple[str, ...], str]:
        """Return why a variant cannot be scored by some metrics, without a full stop, by these metrics."""
        given = (*metric_loading.LIKELIHOODS, *metric_loading.FIDELITY)
        scoring = tuple(name for name in self.metrics if name in given)
        if scoring and not variant.mode.score_tokens:
            needs = "needs" if len(scoring) == 1 else "need"
            return {scoring: f"mode={variant.mode.name} cannot score given texts, which {', '.join(scoring)} {needs}"}
        compared = tuple(name for name in scoring if name in metric_loading.FIDELITY)
        if compared and variant.model_id not in self.references:
            return {compared: "no greedy variant of its checkpoint and prompting can be its reference"}
        return {}

    def parts(self, variant: Variant) -> dict[str, str]:
        """Return the digest of each metric and of the checks of the variant's contract."""
        metrics = self.metrics_of(variant)
        digests = {name: self.digests[name] for name in metrics}
        if metric_loading.FIDELITY[0] in metrics and (reference := self.references.get(variant.model_id)):
            digests[metric_loading.REFERENCE] = reference.fingerprint[:16]
        return digests | {CONTRACT: contract_suite.digest_of(variant.interface.name)}


def make(config: EvaluateConfig) -> Ruler:
    """Return the ruler that a configuration names; raises StepError with every metric that cannot be loaded."""
    judge = config.evaluate.judge if config.evaluate.judge.model else None
    listed = [*config.prompt_set.metrics, *config.evaluate.metrics]
    has_fidelity = metric_loading.FIDELITY_NAME in listed
    sources = _sources([*config.evaluate.metrics, *config.prompt_set.metrics])
    digests = _metric_digests(sources)
    if has_fidelity:
        code = _short([*(digest_file(file) for file in SCORING), digest_file(FIDELITY_CODE)])
        digests |= dict.fromkeys(metric_loading.FIDELITY, code)
    if judge:
        digests[metric_loading.JUDGE] = _judge_digest(judge)
    return Ruler(
        metrics=(
            *sources,
            *(metric_loading.FIDELITY if has_fidelity else ()),
            *([metric_loading.JUDGE] if judge else []),
        ),
        first=_first(listed[0]),
        seed=config.evaluate.seed,
        repeats=config.evaluate.repeats,
        sources=sources,
        digests=digests,
        judge=judge,
    )


def _first(source: str) -> str:
    return metric_loading.FIDELITY[0] if source == metric_loading.FIDELITY_NAME else metric_loading.metric_name(source)


def _sources(listed: list[str]) -> dict[str, str]:
    """Return what each metric is loaded from, by its name. Fidelity is no metric that is loaded."""
    sources: dict[str, str] = {}
    shipped = metric_loading.local_metrics()
    for source in (source for source in listed if source != metric_loading.FIDELITY_NAME):
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
        digests[name] = _short(
            [*base, code, *([digest_file(LIKELIHOOD_CODE)] if name in metric_loading.LIKELIHOODS else [])]
        )
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
