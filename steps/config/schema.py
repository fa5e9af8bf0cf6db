"""The type, default and bounds of every configuration key: no I/O and no heavy import, so that composing is fast."""

from dataclasses import dataclass, field, fields
from typing import Any

from steps.config.benchmark import BenchmarkConfig as BenchmarkConfig
from steps.config.keys import MISSING as MISSING
from steps.config.keys import key as key
from steps.config.launch import LaunchConfig

# The options' keys are read from here too.
from steps.config.options import PRECISIONS as PRECISIONS
from steps.config.options import SOURCES as SOURCES
from steps.config.options import FolderModel as FolderModel
from steps.config.options import HubModel as HubModel
from steps.config.options import MiniatureModel as MiniatureModel
from steps.config.options import Model as Model
from steps.config.options import Precision as Precision
from steps.config.options import QuantizedPrecision as QuantizedPrecision
from steps.config.options import Smollm2Model as Smollm2Model
from steps.config.score import ScoreConfig as ScoreConfig
from steps.config.serve import ServeConfig as ServeConfig

# MLflow keeps models and prompts in one table of names. Every prompt's name begins with this, and no model's may.
PROMPT_PREFIX = "phi3.prompting."
DEFAULT_METRICS = ("answer_match", "exact_match", "token_f1", "rouge_l", "chrf")


@dataclass
class ModeSettings:
    """How the checkpoint is wrapped. Each mode adds its own keys in steps/modes/."""

    name: str = MISSING

    @property
    def batch_size(self) -> int:
        """Return how many rows the mode's engine answers at the same time."""
        return 1

    @property
    def on_gpu(self) -> bool:
        """Return whether the mode is set to run on a GPU."""
        return False

    @property
    def device_fault(self) -> str | None:
        """Return why this machine cannot run the mode as it is set, without a full stop; None if it can."""
        return None


@dataclass
class Generation:
    """How a variant generates unless a request says otherwise; temperature 0 is greedy."""

    temperature: float = key(0.0, at_least=0, at_most=2)
    top_p: float = key(1.0, above=0, at_most=1)
    top_k: int = key(0, at_least=0)
    max_tokens: int = key(256, at_least=1)

    @property
    def greedy(self) -> bool:
        """Return whether the same question always gets the same answer."""
        return self.temperature == 0


@dataclass
class Example:
    """One question and answer of a few-shot prompt."""

    user: str = MISSING
    assistant: str = MISSING


@dataclass
class Prompting:
    """What a variant puts before every conversation: a system prompt, examples."""

    name: str = key(plain_name=True)
    system: str = key("", free_text=True)
    examples: list[Example] = field(default_factory=list)


@dataclass
class Columns:
    """The column of each field of a row. Defaults to the usual names of such a column; null ignores it."""

    id: str | None = key("id", free_text=True)
    messages: str | None = key("messages", free_text=True)
    prompt: str | None = key("prompt", free_text=True)
    choices: str | None = key("choices", free_text=True)  # no field of a row: they are listed below the question
    target: str | None = key("target", free_text=True)
    tags: str | None = key("tags", free_text=True)
    rules: str | None = key("rules", free_text=True)


@dataclass
class PromptSet:
    """The questions that variants are scored on, with accepted answers: a file or a dataset of `datasets`.

    `name` defaults to the name of the file or dataset. `encoding` is that of a file that is not UTF-8. `subset` and
    `split` apply to a dataset. `target_pattern` is a regular expression whose group is the accepted answer. `metrics`
    are computed in addition to those of `evaluate`.
    """

    name: str | None = None
    path: str | None = key(None, free_text=True, is_path=True, needed=True)
    source: str = key("jsonl", one_of=("jsonl", "datasets"))
    subset: str | None = key(None, free_text=True)
    split: str = key("test", free_text=True)
    encoding: str | None = key(None, free_text=True)
    columns: Columns = field(default_factory=Columns)
    target_pattern: str | None = key(None, free_text=True)
    over_context: str = key("refuse", one_of=("refuse", "skip"))
    metrics: list[str] = key([])


@dataclass
class Judge:
    """A language model that scores every answer from 0 to 1, at an OpenAI-compatible address; off without `model`."""

    model: str | None = None
    address: str | None = key(None, free_text=True)
    instructions: str = key(
        "Score how well the answer agrees with the accepted answers: 1 in full, 0 not at all.", free_text=True
    )


@dataclass
class Evaluation:
    """How `evaluate` asks, and which metrics it computes.

    A sampled variant is asked `repeats` times. Each row of each repeat has its own seed, counted from `seed`. `speed`
    times calls of at most `speed_tokens` tokens: for `speed_seconds` one by one, and as long in batches. `stop_early`
    asks rows in an order drawn from `seed`, until a variant can no longer win. The metric `fidelity` compares with the
    variant of the run `reference`, or with the least quantised one of the same checkpoint. `traces` logs one for each
    row; null means for prompt sets of up to 300 rows.
    """

    metrics: list[str] = key(list(DEFAULT_METRICS))
    batch_size: int = key(64, at_least=1, at_most=256)
    seed: int = key(0, at_least=0)
    repeats: int = key(1, at_least=1, at_most=100)
    max_errors: int = key(10, at_least=0)
    stop_early: bool = False
    reference: str | None = None
    judge: Judge = field(default_factory=Judge)
    speed: bool = True
    speed_seconds: float = key(0.5, at_least=0, at_most=600)
    speed_tokens: int = key(32, at_least=1)
    traces: bool | None = None


@dataclass
class Promotion:
    """Which variant is best: hard limits (`min`, `max` of any metric), the contract, the metric, then the cost.

    A cheaper candidate may take the place of a better one if it is shown to be worse by less than `margin`, which is in
    the metric's unit. `direction` says whether a higher or a lower metric is better. `alpha` is the chance of a wrong
    decision that is accepted. `contract_first` sets those aside that fail more checks of their own contract than
    another. Costs within `timed_tolerance` (what is timed) or `size_tolerance` (bytes) of each other are equal.
    A variant is refused if it answered no row, or if more than `max_errors` of its rows have an error. Only variants of
    one `interface` compete, because clients of a champion send one form of request: null means that of the champion.

    The smoke test serves the version and asks `smoke_rows` rows (at most 8: those that evaluate asks one by one). The
    server must be up within `smoke_seconds`. `retry_rejected` gives rejected versions another chance.
    """

    name: str = MISSING
    metric: str = "answer_match"
    direction: str = key("higher", one_of=("higher", "lower"))
    margin: float = key(0.05, at_least=0)
    limits: dict[str, Any] = key({})
    contract_first: bool = True
    prefer: list[str] = key([])
    timed_tolerance: float = key(0.15, at_least=0, at_most=1)
    size_tolerance: float = key(0.05, at_least=0, at_most=1)
    max_errors: int = key(10, at_least=0)
    interface: str | None = None
    alpha: float = key(0.05, above=0, at_most=0.5)
    smoke: bool = True
    smoke_rows: int = key(8, at_least=1, at_most=8)
    smoke_seconds: float = key(300, at_least=1)
    retry_rejected: bool = False
    lock_seconds: float = key(900, at_least=0)

    @property
    def less_is_better(self) -> bool:
        """Return whether a lower value of the metric is better."""
        return self.direction == "lower"


@dataclass
class BuildConfig:
    """Everything that makes a variant. `check`: load it and ask it one question first. `force`: build it once more."""

    model: Model = field(default_factory=Model)
    mode: ModeSettings = field(default_factory=ModeSettings)
    precision: Precision = field(default_factory=Precision)
    interface: str = "chat"
    prompting: Prompting = field(default_factory=Prompting)
    generation: Generation = field(default_factory=Generation)
    check: bool = True
    force: bool = False

    @property
    def device_fault(self) -> str | None:
        """Return why this machine cannot run what it builds, without a full stop; None if it can or need not."""
        return self.mode.device_fault if self.check else None


@dataclass
class EvaluateConfig:
    """Which variants to score, on what. `promotion`: the policy that they will be promoted by."""

    prompt_set: PromptSet = field(default_factory=PromptSet)
    evaluate: Evaluation = field(default_factory=Evaluation)
    run_id: str | None = None
    promotion: Promotion = field(default_factory=Promotion)


@dataclass
class RegisterConfig:
    """What to promote, and under which name; or show the `history`, or `rollback` to `version`."""

    prompt_set: PromptSet = field(default_factory=PromptSet)
    promotion: Promotion = field(default_factory=Promotion)
    registered_model: str = "phi3"
    action: str = key("promote", one_of=("promote", "history", "rollback"))
    version: int | None = key(None, at_least=1)
    dry_run: bool = False


@dataclass
class MainConfig(BuildConfig, EvaluateConfig, RegisterConfig):
    """All three steps. Each of `variants` is a list of overrides of build; `presets` are lists of their names."""

    variants: list[list[str]] = key([])
    presets: dict[str, list[str]] = key({})


STEPS: dict[str, type] = {
    "build": BuildConfig,
    "evaluate": EvaluateConfig,
    "register": RegisterConfig,
    "main": MainConfig,
    "score": ScoreConfig,
    "serve": ServeConfig,
    "benchmark": BenchmarkConfig,
    # Not a step: where the jobs of steps run.
    "launch": LaunchConfig,
}


def step_config(schema: type, config: MainConfig) -> Any:
    """Return one step's part of the main job's configuration."""
    return schema(**{entry.name: getattr(config, entry.name) for entry in fields(schema)})
