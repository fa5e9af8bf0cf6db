"""What the modes on torch share: how a checkpoint is staged, and what their processes import."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.int8 import save_as_int8
from steps.checkpoints.staging import save_as_bf16, staged
from steps.checkpoints.vocabulary import check_vocabulary
from steps.checkpoints.weights import check_weights
from steps.config.schema import BuildConfig
from steps.errors import StepError

# Imported before a measurement, so that loading a model does not time the import of its libraries.
TORCH_MODULES = (
    "mlflow.pyfunc",
    "mlflow.pyfunc.loaders.code_model",
    "mlflow.transformers",
    "transformers.pipelines",
    "transformers.models.auto.modeling_auto",
    "transformers.models.phi3.modeling_phi3",
)

# The precisions whose weights are saved anew, and how.
SAVED = {"bf16": save_as_bf16, "int8": save_as_int8}


@contextlib.contextmanager
def stage_for_torch(checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
    """Stage a checkpoint in Hugging Face layout; raises StepError for any other layout, or weights that do not fit."""
    if checkpoint.layout != "huggingface":
        raise StepError(
            f"'{checkpoint.directory}' has ONNX GenAI layout, which is for mode=onnx, got mode={config.mode.name}."
        )
    check_weights(checkpoint.directory)
    check_vocabulary(checkpoint.directory)
    with staged(checkpoint.directory, config.prompting, SAVED.get(config.precision.name)) as folder:
        yield folder
