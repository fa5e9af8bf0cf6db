"""mode=transformers: MLflow's own transformers flavour, the upstream sample's first option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.checkpoints.prompting import around_user_message
from steps.config.schema import BuildConfig, Generation, ModeSettings, key
from steps.interfaces import get_interface
from steps.modes.mode import Mode, Pairs
from steps.modes.torch_checkpoint import TORCH_MODULES, stage_for_torch
from steps.wrappers.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

    from steps.wrappers.engines.sampling import FloatArray


@dataclass
class TransformersSettings(ModeSettings):
    """The flavour has no settings of its own."""

    name: str = key("transformers", one_of=("transformers",))


def _log(config: BuildConfig, folder: Path, common: dict[str, Any]) -> ModelInfo:
    """Log with the interface's task, or as plain generation with a prompt template if it has none."""
    import mlflow
    import torch

    interface = get_interface(config.interface)
    kind: dict[str, Any] = {"task": interface.task}
    if interface.task is None:
        before, after = (_escaped(text) for text in around_user_message(ChatTokenizer(folder)))
        kind = {
            "task": "text-generation",
            "signature": interface.signature(None),
            "prompt_template": f"{before}{{prompt}}{after}",
        }
    info: ModelInfo = mlflow.transformers.log_model(
        transformers_model=str(folder),
        torch_dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[config.precision.name],
        model_config=_pipeline_config(config.generation),
        model_card=None,
        **kind,
        **common,
    )
    return info


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _pipeline_config(generation: Generation) -> dict[str, Any]:
    """Return the generation settings under the names of transformers' pipeline."""
    config = {"max_new_tokens": generation.max_tokens, "include_prompt": False, "truncation": True}
    if generation.greedy:
        return config | {"do_sample": False}
    return config | {
        "do_sample": True,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
    }


def _seed(seed: int) -> None:
    """Seed torch. A request to the flavour cannot carry a seed."""
    import torch

    torch.manual_seed(seed)


def _score_tokens(model: Any, pairs: Pairs, whole_vocabulary: bool) -> list[FloatArray]:
    """Score texts with the model in the flavour's pipeline, one by one: the flavour itself can only generate."""
    import torch

    language_model = model.get_raw_model().model
    scored: list[FloatArray] = []
    for prompt, rest in pairs:
        ids = torch.tensor([prompt + rest], device=language_model.device)
        with torch.inference_mode():
            # The logits of the last token are those of one that nobody asks for.
            logits = language_model(input_ids=ids, logits_to_keep=len(rest) + 1).logits[0, :-1]
        logprobs = torch.log_softmax(logits.double(), dim=-1).cpu()
        places = torch.tensor(rest)[:, None]
        scored.append((logprobs.float() if whole_vocabulary else logprobs.gather(1, places)[:, 0]).numpy())
    return scored


MODE = Mode(
    name="transformers",
    settings=TransformersSettings,
    precisions=("fp32", "bf16"),
    inexact_precisions=("bf16",),
    packages=("mlflow", "torch", "transformers", "tokenizers", "jinja2"),
    modules=TORCH_MODULES,
    weights_folder="model",
    # It breaks most of its own signature (docs/requests.md): only what it is known to keep can be required.
    core_checks=("all",),
    batches=False,
    streams=False,
    takes_params=False,
    takes_whole_prompts=False,
    seed=_seed,
    stage=stage_for_torch,
    log=_log,
    score_tokens=_score_tokens,
)
