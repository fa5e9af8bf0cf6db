"""Compare how long OpenMP's helper threads look for work before they sleep, on a quiet and on a busy machine.

    python -m tests.benchmarks.waiting

Prints tokens/s of a random Phi-3 of 154 M parameters in `mode=pyfunc`, for 16 answers at once and for one: with the
wait that this project sets, with libgomp's own, and after the main thread has computed too, so that there are more
helpers than cores. Each figure comes from a process of its own, and the cases take turns.
Takes about fifteen minutes on 2 cores.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from steps import command_line
from steps.build import build
from steps.evaluation.asking import loaded
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.tokenizer import ChatTokenizer
from tests.benchmarks.random_model import random_phi3

PRECISIONS = ("fp32", "bf16", "int8")
# Name → the environment, and whether the main thread has helpers.
CASES = {
    "as it is": ({}, False),
    "libgomp's own wait": ({"GOMP_SPINCOUNT": "300000"}, False),
    "helpers of two threads": ({}, True),
}
BATCH, TOKENS = 16, 32


def main(rounds: int) -> None:
    """Print the medians of each case."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        checkpoint = random_phi3(Path(folder) / "checkpoint")
        print(f"tokens/s of {BATCH} answers at once, and of one: medians of {rounds} rounds")
        for precision in PRECISIONS:
            words = ["model=local", f"model.path={checkpoint}", "mode=pyfunc", f"precision={precision}", "check=false"]
            names = [f"models:/{build(command_line.compose('build', words))}", str(checkpoint)]
            for machine, others in (("quiet", contextlib.nullcontext), ("a core is busy", busy_core)):
                with others():
                    figures = [[measured(names, *case) for case in CASES.values()] for _ in range(rounds)]
                for case, pairs in zip(CASES, zip(*figures, strict=True), strict=True):
                    batch, one = (statistics.median(numbers) for numbers in zip(*pairs, strict=True))
                    print(f"{precision:5} {machine:15} {case:23} {batch:6.0f} {one:6.1f}", flush=True)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """Keep a core busy for the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(names: list[str], environment: dict[str, str], helpers: bool) -> tuple[float, float]:
    """Return the tokens/s of a batch and of one answer in a process of its own; `names`: a model and its checkpoint."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.waiting", "--names", *names]
    own = {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    done = subprocess.run(
        [*command, *["--helpers"] * helpers], env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True
    )
    batch, one = map(float, done.stdout.split()[-2:])
    return batch, one


def measure(uri: str, checkpoint: str, helpers: bool) -> None:
    """Print the tokens/s of a batch and of one answer, each the median of three."""
    import torch

    tokenizer = ChatTokenizer(Path(checkpoint))
    with loaded(uri) as model:
        scheduler = model.unwrap_python_model().scheduler
        if helpers:
            torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=TOKENS)

        def rate(count: int, first: int) -> float:
            texts = [f"{number} the capital of Spain" for number in range(first, first + count)]
            prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
            sequences = [Sequence(prompt, settings, tokenizer) for prompt in prompts]
            started = perf_counter()
            scheduler.run(sequences)
            return count * TOKENS / (perf_counter() - started)

        rate(BATCH, 0)
        print(*(statistics.median(rate(count, BATCH * turn) for turn in range(1, 4)) for count in (BATCH, 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--names", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--helpers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.names:
        measure(*arguments.names, arguments.helpers)
    else:
        main(arguments.rounds)
