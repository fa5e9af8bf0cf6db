"""Log a staged checkpoint as a LoggedModel: MLflow's transformers flavour, or one of our wrappers."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.config.schema import BuildConfig, Generation
from steps.output import suppress_output

WRAPPERS = Path(__file__).parents[1] / "wrappers"
# What each mode's model needs where it is loaded; pinned to what it was built with.
REQUIREMENTS = {
    "transformers": ("mlflow", "torch", "transformers", "tokenizers", "jinja2"),
    "pyfunc": ("mlflow", "torch", "transformers", "tokenizers", "jinja2", "numpy", "pandas", "psutil"),
    "onnx": ("mlflow", "onnxruntime", "onnxruntime-genai", "tokenizers", "jinja2", "numpy", "pandas"),
}
EXAMPLES = {
    "chat": {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]},
    "prompt": {"prompt": "What is the capital of Spain?"},
}


def requirements(mode: str) -> list[str]:
    """Pinned pip requirements, without the labels of local builds such as +cpu."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS[mode]]


def log_variant(config: BuildConfig, folder: Path, name: str, params: dict[str, str], tags: dict[str, str]) -> str:
    """Log the staged `folder` in the active run; returns the id of the LoggedModel."""
    common = {
        "name": name,
        "params": params,
        "tags": tags,
        "input_example": EXAMPLES[config.interface],
        "pip_requirements": requirements(config.mode.name),
    }
    log = _log_transformers if config.mode.name == "transformers" else _log_wrapper
    with suppress_output(), _without_bytecode():
        return log(config, folder, common).model_id


def stored_at(config: BuildConfig, folder: Path) -> str:
    """The path that the staged `folder` has inside the logged model."""
    return "model" if config.mode.name == "transformers" else f"artifacts/{folder.name}"


def _log_transformers(config: BuildConfig, folder: Path, common: dict[str, Any]):
    """As the first option of the upstream sample; with interface=prompt the flavour's plain generation."""
    import mlflow
    import torch

    if config.interface == "chat":
        kind: dict[str, Any] = {"task": "llm/v1/chat"}
    else:
        kind = {
            "task": "text-generation",
            "signature": prompt_signature(),
            "prompt_template": _prompt_template(folder),
        }
    return mlflow.transformers.log_model(
        transformers_model=str(folder),
        torch_dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision.name],
        model_config=_pipeline_config(config.generation),
        model_card=None,
        **kind,
        **common,
    )


def _pipeline_config(generation: Generation) -> dict[str, Any]:
    """Generation settings under the names of transformers' pipeline."""
    config = {"max_new_tokens": generation.max_tokens, "include_prompt": False, "truncation": True}
    if generation.temperature == 0:
        return config | {"do_sample": False}
    return config | {
        "do_sample": True,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
    }


def _prompt_template(folder: Path) -> str:
    """The chat format around one user's prompt, as MLflow's flavour wants it."""
    from steps.wrappers.tokenizer import ChatTokenizer

    mark = "\x1aprompt\x1a"
    rendered = ChatTokenizer(folder).render([{"role": "user", "content": mark}])
    return rendered.replace("{", "{{").replace("}", "}}").replace(mark, "{prompt}")


def _log_wrapper(config: BuildConfig, folder: Path, common: dict[str, Any]):
    """Our PythonModel, logged from code; the wrappers travel with it and nothing is pickled."""
    import mlflow

    signature = chat_signature() if config.interface == "chat" else prompt_signature(config.generation)
    with _importable(WRAPPERS.parent):
        return mlflow.pyfunc.log_model(
            python_model=str(WRAPPERS / f"{config.mode.name}_model.py"),
            code_paths=[str(WRAPPERS)],
            artifacts={"checkpoint": str(folder)},
            model_config=wrapper_config(config),
            signature=_checked_by_the_contract(signature),
            metadata={"task": "llm/v1/chat"} if config.interface == "chat" else None,
            **common,
        )


def wrapper_config(config: BuildConfig) -> dict[str, Any]:
    """What the wrapper reads when it is loaded."""
    engine: dict[str, Any] = {"max_batch_size": config.mode.max_batch_size}
    if config.mode.name == "pyfunc":
        engine |= {"precision": config.precision.name, "device": config.mode.device}
    else:
        engine |= {"execution_provider": config.mode.execution_provider}
    generation = config.generation
    return {
        "name": config.model.name,
        "interface": config.interface,
        "generation": {
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "top_k": generation.top_k,
            "max_tokens": generation.max_tokens,
        },
        "engine": engine,
    }


def _checked_by_the_contract(signature):
    """Have MLflow hand requests on as they come: the wrapper's contract checks every field of them.

    MLflow's own enforcement refuses a whole number for a temperature, and repeats the prompt when it refuses.
    It leaves models alone whose signature is from type hints.
    """
    signature._is_signature_from_type_hint = True
    return signature


def chat_signature():
    """MLflow's own chat schemas, as they are; the seed, which they have not, as a param."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    params = ParamSchema([ParamSpec("seed", "long", None)])
    return ModelSignature(inputs=CHAT_MODEL_INPUT_SCHEMA, outputs=CHAT_MODEL_OUTPUT_SCHEMA, params=params)


def prompt_signature(generation: Generation | None = None):
    """prompt: string → string, as the second option of the upstream sample; settings as params."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = None
    if generation is not None:
        params = ParamSchema(
            [
                ParamSpec("temperature", "double", generation.temperature),
                ParamSpec("top_p", "double", generation.top_p),
                ParamSpec("top_k", "long", generation.top_k),
                ParamSpec("max_tokens", "long", None),
                ParamSpec("stop", "string", [], shape=(-1,)),
                ParamSpec("n", "long", 1),
                ParamSpec("seed", "long", None),
            ]
        )
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]), outputs=Schema([ColSpec("string")]), params=params
    )


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Have no file that Python compiled beside a model's code logged with it: it belongs to no model."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Let MLflow run a model's code: it imports its package by the name that it has inside the model."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
