"""Our variants against OpenVINO GenAI, with the weights that Optimum Intel packs in four bits.

Optimum Intel needs another version of transformers than this project. So it runs in an environment that uv makes, in a
process that waits for prompts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from steps.benchmarking import openvino_worker
from steps.benchmarking.comparison import Comparison
from steps.benchmarking.other_engine import against
from steps.benchmarking.place import Place
from steps.errors import StepError
from steps.output import activity
from steps.wrappers.engines.threads import thread_limit

# What it needs that this project does not install.
PROGRAMS = ("uv",)
REQUIREMENTS = ("optimum-intel[openvino]==2.2.*", "openvino-genai==2026.4.*")


def comparisons(place: Place) -> Iterator[Comparison]:
    """Yield each variant against OpenVINO GenAI. On a GPU there is nothing to compare."""
    if place.device != "cpu":
        return
    with OpenVino.started(place.checkpoint, place.folder / "openvino") as openvino:
        others = (
            ("mode=onnx", "precision=int4"),
            *(("mode=openvino", f"precision={name}") for name in ("int8", "int4")),
        )
        for overrides in (place.pyfunc("int8"), *others):
            yield from against(place, overrides, "OpenVINO GenAI int4", openvino.answer)


class OpenVino:
    """A process with OpenVINO GenAI."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        """Wait until the process has exported the checkpoint; `errors` is where it writes what goes wrong."""
        self._process, self._errors = process, errors
        self._reply()

    @staticmethod
    @contextlib.contextmanager
    def started(
        checkpoint: Path, folder: Path, weights: str = "int4", properties: dict[str, str] | None = None
    ) -> Iterator[OpenVino]:
        """Run OpenVINO GenAI for the block.

        Args:
            checkpoint: The folder of a checkpoint.
            folder: Where to export it.
            weights: int4 or fp32.
            properties: Of OpenVINO's CPU device, besides the number of threads.
        """
        import torch

        own = {"INFERENCE_NUM_THREADS": thread_limit() or torch.get_num_threads(), **(properties or {})}
        words = [openvino_worker.__file__, str(checkpoint), str(folder), weights, json.dumps(own)]
        # The process ends when its input ends.
        with tempfile.TemporaryFile() as errors, _started(["python", "-I", *words], errors) as process:
            with activity("exporting for OpenVINO, in an environment that uv makes"):
                openvino = OpenVino(process, errors)
            yield openvino

    def answer(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest tokens for each prompt, as many as are asked for."""
        with contextlib.suppress(BrokenPipeError):  # the missing reply says why
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        return self._reply()["answers"]

    def _reply(self) -> dict[str, list[list[int]]]:
        """Return the next line of the process; raise StepError if it ended."""
        line = next(iter(self._process.stdout or ()), None)
        if line is None:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise StepError(f"OpenVINO GenAI failed, in an environment with {' and '.join(REQUIREMENTS)}: {said[-1]}")
        reply: dict[str, list[list[int]]] = json.loads(line)
        return reply


def _started(command: list[str], errors: IO[bytes]) -> subprocess.Popen[str]:
    """Start a command in an environment with OpenVINO GenAI."""
    pipe, offline = subprocess.PIPE, os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([*environment(), *command], stdin=pipe, stdout=pipe, stderr=errors, text=True, env=offline)


def environment(*words: str) -> list[str]:
    """Return the beginning of a command that runs in an environment with OpenVINO GenAI; `words` are for uv."""
    packages = [word for requirement in REQUIREMENTS for word in ("--with", requirement)]
    return ["uv", "run", "--no-project", "--isolated", "--quiet", "--python", sys.executable, *words, *packages]
