"""Measure what the first to fifth variant of one random checkpoint add to a store, on this machine and on a server.

    python -m tests.benchmarks.sharing small                      # about two minutes
    python -m tests.benchmarks.sharing 1b mode=onnx precision=int4

Prints for each variant the bytes that the artifacts grew by (a file with two names counts once), the wall time of the
whole command, and that of the build alone: a command imports its libraries first and reads the checkpoint to get its
sha256. The server is `mlflow server` on this machine, which passes artifacts on. Nothing is asked (check=false):
loading a model reads all of it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import mlflow

from steps.benchmarking.checkpoint import SHAPES, write_checkpoint
from tests.mlflow_server import running

VARIANTS = (
    ["prompting=plain"],
    ["prompting=brief"],
    ["prompting=few_shot"],
    ["generation.max_tokens=7"],
    ["generation.temperature=0.5"],
)


def measure(title: str, uri: str, folder: Path, source: Path, words: list[str]) -> None:
    """Build the variants in a store and print what each one took.

    Args:
        title: What to call the store.
        uri: Its address.
        folder: Where its artifacts are on this machine.
        source: The checkpoint.
        words: What the variants have in common.
    """
    size = sum(file.stat().st_size for file in source.iterdir())
    print(f"{title} ({size:,} bytes of checkpoint)\nvariant    bytes added   of the checkpoint   command s   build s")
    before = stored_bytes(folder)
    for number, further in enumerate(VARIANTS, 1):
        started = perf_counter()
        model_id = build(uri, folder, "model=local", f"model.path={source}", "check=false", *words, *further)
        seconds = perf_counter() - started
        after = stored_bytes(folder)
        metrics = mlflow.MlflowClient(uri).get_logged_model(model_id).metrics
        (alone,) = [metric.value for metric in metrics if metric.key == "build/seconds"]
        share = 100 * (after - before) / size
        print(f"{number:7} {after - before:14,} {share:17.2f} % {seconds:11.1f} {alone:9.1f}", flush=True)
        before = after


def stored_bytes(folder: Path) -> int:
    """Return the bytes on the disk of a folder: a file with two names counts once."""
    files = [file.stat() for file in folder.rglob("*") if file.is_file() and file.suffix not in (".db", ".log")]
    return sum({file.st_ino: file.st_size for file in files}.values())


def build(uri: str, folder: Path, *words: str) -> str:
    """Build a variant in its own process; return the id of its model."""
    settings = {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "steps.build", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return re.findall(r"models:/(m-\w+)", done.stdout)[-1]


def main() -> None:
    """Measure both stores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("words", nargs="*", default=["mode=pyfunc", "precision=bf16"], help="mode and precision")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phi3-sharing-")))
        write_checkpoint(SHAPES[arguments.shape], place / "checkpoint")
        for title in ("local", "server"):
            (place / title).mkdir()
        os.environ["PHI3_CACHE_DIR"] = str(place / "cache")
        local, folder = f"sqlite:///{place}/local/mlflow.db", place / "server"
        measure("artifacts on this machine", local, place / "local", place / "checkpoint", arguments.words)
        server = stack.enter_context(running(folder))
        measure("artifacts on a server", server.address, folder, place / "checkpoint", arguments.words)


if __name__ == "__main__":
    main()
