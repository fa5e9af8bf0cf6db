"""The limits of configuration values that a type cannot say."""

import math
from collections.abc import Iterator
from typing import Any

from steps.config.schema import BuildConfig, EvaluateConfig, MainConfig, RegisterConfig

# Which precision each mode has; int4 is ONNX Runtime GenAI's.
PRECISIONS = {
    "transformers": ("fp32", "bf16"),
    "pyfunc": ("fp32", "bf16"),
    "onnx": ("fp32", "int4"),
}
INTERFACES = ("chat", "prompt")
ACTIONS = ("promote", "history", "rollback")


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
