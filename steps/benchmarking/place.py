"""What is compared: a random checkpoint, and the variants that are built from it in a store of their own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any

from steps.benchmarking.checkpoint import SHAPES, write_checkpoint
from steps.config.paths import PROJECT
from steps.errors import StepError
from steps.evaluation.asking import loaded
from steps.output import activity
from steps.store.child_process import storeless_environment
from steps.wrappers.tokenizer import ChatTokenizer

POLL_SECONDS = 0.05
WORDS = ("the", "capital", "of", "Spain", "is", "Madrid", "and")


@dataclass(frozen=True)
class Size:
    """A random Phi-3 and how much work it is given.

    Attributes:
        name: That of its shape too.
        words: What to call it.
        prompts: How many a measurement answers.
        tokens: How many tokens each answer has.
        precisions: Of the torch engine. In fp32 the largest size would need twice the memory of most machines.
    """

    name: str
    words: str
    prompts: int
    tokens: int
    precisions: tuple[str, ...]


SIZES = {
    "small": Size("small", "154 M parameters", 32, 32, ("fp32", "bf16")),
    "medium": Size("medium", "1.1 B parameters, 8 layers of Phi-3-mini", 32, 16, ("fp32", "bf16")),
    "phi3_mini": Size("phi3_mini", "3.8 B parameters, the shape of Phi-3-mini", 16, 8, ("bf16",)),
}


class Place:
    """A folder with a random checkpoint, a store and a cache, all of which end with it.

    Args:
        folder: An empty folder.
        size: What to make and how much to ask it.
        device: torch's name of the device that measures, cpu or cuda.
    """

    def __init__(self, folder: Path, size: Size, device: str) -> None:
        self.folder, self.size, self.device = folder, size, device
        self.checkpoint = folder / "checkpoint"
        self._models: dict[tuple[str, ...], Path] = {}
        self._numbers = itertools.count()
        write_checkpoint(SHAPES[size.name], self.checkpoint)

    def pyfunc(self, precision: str) -> tuple[str, ...]:
        """Return the overrides of a variant on torch that runs on this place's device."""
        return "mode=pyfunc", f"precision={precision}", f"mode.device={self.device}"

    @property
    def variants(self) -> tuple[tuple[str, ...], ...]:
        """Return the overrides of the variants that most sections measure on this device."""
        on_torch = self.pyfunc("bf16")
        others = ("mode=onnx", "precision=int4"), ("mode=openvino", "precision=int8")
        return (on_torch, *others) if self.device == "cpu" else (on_torch,)

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        """Return the checkpoint's tokenizer."""
        return ChatTokenizer(self.checkpoint)

    def texts(self, count: int) -> list[str]:
        """Return questions of 2 to 36 words that were never asked before, so that no cache knows their beginning."""
        numbers = itertools.islice(self._numbers, count)
        return [f"{number} {_sentence(1 + number % 7 * (1 + number % 5))}" for number in numbers]

    def prompts(self, count: int) -> list[list[int]]:
        """Return such questions as token ids."""
        return [self.tokenizer.encode_chat([{"role": "user", "content": text}]) for text in self.texts(count)]

    def model(self, *overrides: str) -> Path:
        """Return the folder of the model of a variant. It is built when it is asked for first."""
        if overrides not in self._models:
            self._models[overrides] = self.build(self.folder / "store", *overrides)
        return self._models[overrides]

    @contextlib.contextmanager
    def loaded(self, *overrides: str) -> Iterator[Any]:
        """Load the model of a variant for the block. At its end no thread holds the model any more."""
        folder = self.model(*overrides)
        with loaded(str(folder)) as model:
            yield model
            wait_until_idle(model)

    def build(self, store: Path, *overrides: str) -> Path:
        """Build a variant in a store, in a process of its own; return the folder of its model."""
        words = ["model=local", f"model.path={self.checkpoint}", f"generation.max_tokens={self.size.tokens}"]
        output = self.run(store, "steps.build", *words, "check=false", *overrides)
        model_id = re.findall(r"models:/(m-\w+)", output)[-1]
        return next(store.glob(f"mlruns/*/models/{model_id}/artifacts"))

    def run(self, store: Path, module: str, *words: str) -> str:
        """Run a command of this project with a store; return what it printed.

        Raises:
            StepError: It failed.
        """
        store.mkdir(exist_ok=True)
        # Free the models that were measured before: a build needs the memory.
        gc.collect()
        with activity(f"running {module}"):
            command = [sys.executable, "-W", "ignore", "-m", module, *words]
            done = subprocess.run(command, cwd=store, env=self.environment(store), capture_output=True, text=True)
        if done.returncode:
            raise StepError(f"{module} {' '.join(words)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout

    def environment(self, store: Path) -> dict[str, str]:
        """Return the environment of a process that uses a store and the cache of this place."""
        own = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db", "PHI3_CACHE_DIR": str(self.folder / "cache")}
        return storeless_environment() | own | {"PYTHONPATH": str(PROJECT)}


def wait_until_idle(model: Any) -> None:
    """Wait until the engine of a loaded model has no thread any more."""
    scheduler = model.unwrap_python_model().scheduler
    while not scheduler.is_idle:
        sleep(POLL_SECONDS)


def short_name(overrides: tuple[str, ...]) -> str:
    """Return mode and precision of a variant."""
    return " ".join(word.partition("=")[2] for word in overrides[:2])


def _sentence(words: int) -> str:
    return " ".join(itertools.islice(itertools.cycle(WORDS), words))
