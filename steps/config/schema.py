"""The type of every configuration key; limits.py has what a type cannot say.

No I/O and no heavy import: a step that only composes its configuration starts at once.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

FREE_TEXT = {"metadata": {"free_text": True}}


@dataclass
class Model:
    """Where the checkpoint comes from: the miniature (`seed`), a hub repository, or a folder."""

    name: str = MISSING
    source: str = MISSING
    seed: int = 0
    repository: str | None = None
    revision: str | None = None
    path: str | None = field(default=None, **FREE_TEXT)


@dataclass
class Mode:
    """How the checkpoint is wrapped, and the settings of that mode's engine."""

    name: str = MISSING
    max_batch_size: int = 16
    device: str = "auto"
    execution_provider: str = "cpu"


@dataclass
class Precision:
    """The numbers that weights are kept in; the block settings belong to int4."""

    name: str = MISSING
    block_size: int = 32
    accuracy_level: int = 4


@dataclass
class Generation:
    """How a variant generates unless a request says otherwise; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256


@dataclass
class Example:
    """One turn of a few-shot prompt."""

    user: str = MISSING
    assistant: str = MISSING


@dataclass
class Prompting:
    """What a variant puts before every conversation."""

    name: str = MISSING
    system: str = field(default="", **FREE_TEXT)
    examples: list[Example] = field(default_factory=list)


@dataclass
class Columns:
    """Which columns of a dataset hold the fields of a row: without a word of its own name, with null of none."""

    id: str | None = field(default="id", **FREE_TEXT)
    messages: str | None = field(default="messages", **FREE_TEXT)
    prompt: str | None = field(default="prompt", **FREE_TEXT)
    target: str | None = field(default="target", **FREE_TEXT)
    tags: str | None = field(default="tags", **FREE_TEXT)
    rules: str | None = field(default="rules", **FREE_TEXT)


@dataclass
class PromptSet:
    """The questions and accepted answers that variants are scored on: a JSONL file, or a dataset of `datasets`.

    Without a `name` it is called as the file or dataset is. `subset`, `split` and `columns` belong to a dataset;
    `metrics` are the set's own, beside those of `evaluate`.
    """

    name: str | None = None
    path: str | None = field(default=None, **FREE_TEXT)
    source: str = "jsonl"
    subset: str | None = field(default=None, **FREE_TEXT)
    split: str = field(default="test", **FREE_TEXT)
    columns: Columns = field(default_factory=Columns)
    over_context: str = "refuse"
    metrics: list[str] = field(default_factory=list)


@dataclass
class Judge:
    """A model that scores every answer from 0 to 1, behind an OpenAI-compatible address; none without `model`."""

    model: str | None = None
    address: str | None = field(default=None, **FREE_TEXT)
    instructions: str = field(
        default="Score how well the answer agrees with the accepted answers: 1 in full, 0 not at all.", **FREE_TEXT
    )


@dataclass
class Evaluation:
    """How `evaluate` asks, and which metrics it counts.

    A sampled variant is asked `repeats` times, each row each time with a seed of its own that counts from `seed`.
    `speed` times calls of at most `speed_tokens` each, for `speed_seconds` one by one and as long in batches.
    """

    metrics: list[str] = field(default_factory=lambda: ["answer_match", "exact_match", "token_f1", "rouge_l", "chrf"])
    batch_size: int = 64
    seed: int = 0
    repeats: int = 1
    max_errors: int = 10
    judge: Judge = field(default_factory=Judge)
    speed: bool = True
    speed_seconds: float = 0.5
    speed_tokens: int = 32
    traces: bool = False


@dataclass
class Promotion:
    """What best means: hard limits (`min`, `max` of any metric) first, then the metric, then the cheapest of the tied.

    `alpha` is the level at which a difference counts. The smoke test serves the version and asks `smoke_rows` rows
    (8 at most: those that evaluate asks one by one); the server must be up within `smoke_seconds`. `retry_rejected`
    gives rejected versions another chance.
    """

    name: str = MISSING
    metric: str = "answer_match"
    limits: dict[str, Any] = field(default_factory=dict)
    prefer: list[str] = field(default_factory=list)
    alpha: float = 0.05
    smoke: bool = True
    smoke_rows: int = 8
    smoke_seconds: float = 300
    retry_rejected: bool = False
    lock_seconds: float = 900


@dataclass
class BuildConfig:
    """Everything that makes a variant."""

    model: Model = field(default_factory=Model)
    mode: Mode = field(default_factory=Mode)
    precision: Precision = field(default_factory=Precision)
    interface: str = "chat"
    prompting: Prompting = field(default_factory=Prompting)
    generation: Generation = field(default_factory=Generation)


@dataclass
class EvaluateConfig:
    """Which variants to score, on what."""

    prompt_set: PromptSet = field(default_factory=PromptSet)
    evaluate: Evaluation = field(default_factory=Evaluation)
    run_id: str | None = None


@dataclass
class RegisterConfig:
    """What to promote, and to which name; or who was champion (`history`), or back to `version` (`rollback`)."""

    prompt_set: PromptSet = field(default_factory=PromptSet)
    promotion: Promotion = field(default_factory=Promotion)
    registered_model: str = "phi3"
    action: str = "promote"
    version: int | None = None
    dry_run: bool = False


@dataclass
class MainConfig(BuildConfig, EvaluateConfig, RegisterConfig):
    """All three steps: each of `variants` is a list of overrides of build's configuration."""

    variants: list[list[str]] = field(default_factory=list)


def only(schema: type, config: MainConfig) -> Any:
    """One step's part of the main job's configuration."""
    return schema(**{entry.name: getattr(config, entry.name) for entry in fields(schema)})


SCHEMAS = {"build": BuildConfig, "evaluate": EvaluateConfig, "register": RegisterConfig, "main": MainConfig}


def store_schemas() -> None:
    """Make the schemas known to Hydra, as `build_schema` and so on."""
    for step, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{step}_schema", node=schema)


def free_text_keys(schema: type = MainConfig, prefix: str = "") -> frozenset[str]:
    """Dotted keys whose values are taken as they are typed."""
    keys: set[str] = set()
    for entry in fields(schema):
        if entry.metadata.get("free_text"):
            keys.add(f"{prefix}{entry.name}")
        elif is_dataclass(entry.type):
            keys |= free_text_keys(entry.type, f"{prefix}{entry.name}.")
    return frozenset(keys)
