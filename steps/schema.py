"""The type of every configuration key, and the limits that a type cannot say.

No I/O and no heavy import: a step that only composes its configuration starts at once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# Which precision each mode has; int4 is ONNX Runtime GenAI's.
PRECISIONS = {
    "transformers": ("fp32", "bf16"),
    "pyfunc": ("fp32", "bf16"),
    "onnx": ("fp32", "int4"),
}
INTERFACES = ("chat", "prompt")
ACTIONS = ("promote", "history", "rollback")
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

    `subset`, `split` and `columns` belong to a dataset; `metrics` are the set's own, beside those of `evaluate`.
    """

    name: str = MISSING
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


def faults(config: Any) -> list[str]:
    """Every value of a step's configuration that is out of its limits, by full key path."""
    checks = [
        (BuildConfig, _build_faults),
        ((EvaluateConfig, RegisterConfig), _prompt_set_faults),
        (EvaluateConfig, _evaluate_faults),
        (RegisterConfig, _register_faults),
    ]
    return [fault for kind, check in checks if isinstance(config, kind) for fault in check(config)]


def _build_faults(config: BuildConfig) -> Iterator[str]:
    mode, precision, generation = config.mode, config.precision, config.generation
    if mode.name not in PRECISIONS:
        yield from _one_of("mode.name", mode.name, tuple(PRECISIONS))
        return
    yield from _one_of("mode.device", mode.device, ("auto", "cpu", "cuda"))
    yield from _one_of("mode.execution_provider", mode.execution_provider, ("cpu", "cuda", "dml"))
    if precision.name not in PRECISIONS[mode.name]:
        having = ", ".join(name for name, offered in PRECISIONS.items() if precision.name in offered)
        yield (
            f"precision={precision.name} is not offered by mode={mode.name}, which has "
            f"{', '.join(PRECISIONS[mode.name])}. Modes that have {precision.name}: {having or 'none'}."
        )
    yield from _one_of("interface", config.interface, INTERFACES)
    yield from _one_of("model.source", config.model.source, ("miniature", "hub", "folder"))
    yield from _needed("model.path", config.model.path, config.model.source == "folder")
    yield from _needed("model.repository", config.model.repository, config.model.source == "hub")
    yield from _within("generation.temperature", generation.temperature, 0, 2)
    yield from _within("generation.top_p", generation.top_p, 0, 1, open_low=True)
    yield from _within("generation.top_k", generation.top_k, 0)
    yield from _within("generation.max_tokens", generation.max_tokens, 1)
    yield from _within("model.seed", config.model.seed, 0)
    yield from _within("mode.max_batch_size", mode.max_batch_size, 1, 256)
    yield from _one_of("precision.block_size", precision.block_size, (16, 32, 64, 128, 256))
    yield from _within("precision.accuracy_level", precision.accuracy_level, 0, 4)


def _evaluate_faults(config: EvaluateConfig) -> Iterator[str]:
    if isinstance(config, MainConfig) and config.run_id:
        yield f"run_id belongs to evaluate, main scores all of its variants: leave it out, got '{config.run_id}'."
    yield from _within("evaluate.batch_size", config.evaluate.batch_size, 1, 256)
    yield from _within("evaluate.seed", config.evaluate.seed, 0)
    yield from _within("evaluate.repeats", config.evaluate.repeats, 1, 100)
    yield from _within("evaluate.max_errors", config.evaluate.max_errors, 0)
    yield from _within("evaluate.speed_seconds", config.evaluate.speed_seconds, 0, 600)
    yield from _within("evaluate.speed_tokens", config.evaluate.speed_tokens, 1)
    if not config.evaluate.metrics:
        yield "evaluate.metrics must name at least one metric, got none."
    judge = config.evaluate.judge
    yield from _needed("evaluate.judge.address", judge.address, bool(judge.model), "judge")
    yield from _needed("evaluate.judge.model", judge.model, bool(judge.address), "judge")


def _prompt_set_faults(config: Any) -> Iterator[str]:
    prompt_set = config.prompt_set
    yield from _one_of("prompt_set.source", prompt_set.source, ("jsonl", "datasets"))
    yield from _one_of("prompt_set.over_context", prompt_set.over_context, ("refuse", "skip"))
    yield from _needed("prompt_set.path", prompt_set.path, True, "prompt set")


def _register_faults(config: RegisterConfig) -> Iterator[str]:
    for name, limit in config.promotion.limits.items():
        if not isinstance(limit, dict) or not limit or set(limit) - {"min", "max"}:
            yield f"promotion.limits.{name} must have min, max or both, got {limit or 'neither'}."
        elif wrong := [value for value in limit.values() if not isinstance(value, int | float)]:
            yield f"promotion.limits.{name} must be numbers, got {wrong[0]!r}."
        elif limit.get("min", -math.inf) > limit.get("max", math.inf):
            yield f"promotion.limits.{name}.min must be at most its max {limit['max']:g}, got {limit['min']:g}."
    promotion = config.promotion
    yield from _within("promotion.alpha", promotion.alpha, 0, 0.5, open_low=True)
    yield from _within("promotion.smoke_rows", promotion.smoke_rows, 1, 8)
    yield from _within("promotion.smoke_seconds", promotion.smoke_seconds, 1)
    yield from _within("promotion.lock_seconds", promotion.lock_seconds, 0)
    yield from _within("version", config.version, 1)
    yield from _one_of("action", config.action, ("promote",) if isinstance(config, MainConfig) else ACTIONS)
    if config.version is not None and config.action != "rollback":
        yield f"version is what action=rollback goes back to, got version={config.version} with action={config.action}."
    if not config.registered_model or set(config.registered_model) & set("/:'"):
        yield f"registered_model must be a name without '/' and ':' (and no quote), got '{config.registered_model}'."


def _needed(key: str, value: str | None, needed: bool, what: str = "model") -> Iterator[str]:
    if needed and not value:
        yield f"{key} is needed for this {what}: give -P {key}=…"


def _one_of(key: str, value: Any, allowed: tuple) -> Iterator[str]:
    if value not in allowed:
        yield f"{key} must be one of {', '.join(map(str, allowed))}, got {value!r}."


def _within(key: str, value: float | None, low: float, high: float = math.inf, open_low: bool = False) -> Iterator[str]:
    if value is None or ((low < value if open_low else low <= value) and value <= high):
        return
    bounds = f"above {low:g}" if open_low else f"at least {low:g}"
    yield f"{key} must be {bounds}{f' and at most {high:g}' if high < math.inf else ''}, got {value!r}."
