"""Measure what launchers bring and cost: six evaluations, one after the other and two at a time, on one core each.

    python -m tests.benchmarks.launching                  # Ray and joblib, about ten minutes on two cores
    python -m tests.benchmarks.launching --rows 300       # a quick look

Every job has one core, so a second worker can at best halve the time. All sweeps score the same six variants on the
same number of rows, each in a prompt set of its own: nothing is scored already. "none" is the plain step, without a
launcher. "overhead" is what one job costs in addition to it: (one worker - none) / six.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FACTS = Path(__file__).resolve().parents[2] / "conf" / "prompt_set" / "facts.jsonl"
VARIANTS = 6
LAUNCHERS = {
    "none": [],
    "ray, one worker": ["launcher=ray", f"launcher.cpus={os.cpu_count()}"],
    "ray, two workers": ["launcher=ray", f"launcher.cpus={(os.cpu_count() or 2) // 2}"],
    "joblib, one worker": ["launcher=joblib", "launcher.jobs=1"],
    "joblib, two workers": ["launcher=joblib", "launcher.jobs=2"],
}


def main() -> None:
    """Print the seconds of each sweep, and what follows from them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="phi3-launching-") as folder:
        place = Path(folder)
        tokens = ",".join(str(12 + number) for number in range(VARIANTS))
        run(place, "build", "mode=onnx", "precision=int4", f"generation.max_tokens={tokens}")
        seconds = {}
        for name, words in LAUNCHERS.items():
            prompts = write_prompts(place / f"{len(seconds)}.jsonl", rows)
            seconds[name] = run(place, "evaluate", f"prompt_set.path={prompts}", "evaluate.speed=false", *words)
            print(f"{name}: {seconds[name]:.0f} s", flush=True)
    for name in ("ray", "joblib"):
        one, two = seconds[f"{name}, one worker"], seconds[f"{name}, two workers"]
        overhead = (one - seconds["none"]) / VARIANTS
        print(f"{name}: two workers take {two / one:.2f} of the time of one, overhead {overhead:.1f} s a job")


def write_prompts(file: Path, count: int) -> Path:
    """Write the questions of facts, over and over; ids and file are new, so nothing is scored already."""
    facts = [json.loads(line) for line in FACTS.read_text().splitlines()]
    rows = [facts[number % len(facts)] | {"id": f"{file.stem}-{number}"} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(folder: Path, step: str, *words: str) -> float:
    """Run a step on the store in a folder; return its wall time."""
    settings = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    started = time.perf_counter()
    command = [sys.executable, "-m", f"steps.{step}", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | settings | paths, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
