"""A mode that repeats the question: everything that a mode needs, in one file. It shows where the seam is."""

import contextlib
from dataclasses import dataclass

from steps.checkpoints.staging import staged
from steps.config.schema import ModeSettings, key
from steps.interfaces import get_interface
from steps.modes.mode import Mode
from tests.conftest import PROJECT


@dataclass
class EchoSettings(ModeSettings):
    """How often the question is repeated."""

    name: str = key("echo", one_of=("echo",))
    times: int = key(1, at_least=1, at_most=3)


@contextlib.contextmanager
def _stage(checkpoint, config):
    with staged(checkpoint.directory, config.prompting) as folder:
        yield folder


def _log(config, folder, common):
    import mlflow

    return mlflow.pyfunc.log_model(
        python_model=str(PROJECT / "tests/modes/echo_model.py"),
        artifacts={"checkpoint": str(folder)},
        model_config={"times": config.mode.times},
        signature=get_interface(config.interface).signature(config.generation),
        **common,
    )


MODE = Mode(
    name="echo",
    settings=EchoSettings,
    precisions=("fp32",),
    inexact_precisions=(),
    packages=("mlflow",),
    modules=("mlflow.pyfunc", "mlflow.pyfunc.loaders.code_model"),
    weights_folder="artifacts/checkpoint",
    core_checks=(),
    batches=True,
    streams=False,
    takes_params=False,
    takes_whole_prompts=False,
    seed=None,
    stage=_stage,
    log=_log,
)
