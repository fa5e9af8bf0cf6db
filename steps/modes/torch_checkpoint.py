"""What the modes on torch share: how a checkpoint is staged, and what their processes import."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from steps.checkpoints.bf16 import as_bf16
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.int8 import as_int8
from steps.checkpoints.staging import staged
from steps.checkpoints.vocabulary import check_vocabulary
from steps.checkpoints.weights import check_weights
from steps.config.schema import BuildConfig

# Imported before a measurement, so that loading a model does not time the import of its libraries.
TORCH_MODULES = (
    "mlflow.pyfunc",
    "mlflow.pyfunc.loaders.code_model",
    "mlflow.transformers",
    "transformers.pipelines",
    "transformers.models.auto.modeling_auto",
    "transformers.models.phi3.modeling_phi3",
)

# The precisions whose weights are not always those of the checkpoint.
CONVERSIONS = {"bf16": as_bf16, "int8": as_int8}


@contextlib.contextmanager
def stage_for_torch(checkpoint: Checkpoint, config: BuildConfig) -> Iterator[Path]:
    """Stage a checkpoint in Hugging Face layout; raises StepError for any other layout, or weights that do not fit."""
    checkpoint.refuse_export(config.mode.name)
    check_weights(checkpoint.directory)
    check_vocabulary(checkpoint.directory)
    convert = CONVERSIONS.get(config.precision.name)
    source, entries = convert(checkpoint) if convert else (checkpoint.directory, checkpoint.manifest)
    with staged(source, config.prompting, entries) as folder:
        yield folder
