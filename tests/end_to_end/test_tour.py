"""The tour of the README: its commands are typed in order, in a copy of the project with nothing in its store.

Only what differs here is replaced: the environment, the port, and the folder of the user's own model, for which a
miniature stands in that was trained on the tour's questions.
"""

import csv
import re
import shutil
import subprocess
import urllib.request

import psutil
import pytest
import yaml

from steps.checkpoints.miniature import train_miniature
from tests.conftest import PROJECT
from tests.support import free_port, wait_until

TOUR = (PROJECT / "README.md").read_text().partition("## A tour")[2].partition("\n## ")[0]
# Each command with what the README says that it prints.
STEPS = re.findall(r"```sh\n(.*?)```(?:\s*```\n(.*?)```)?", TOUR, re.S)
LEFT_OUT = "…"


@pytest.fixture
def project(tmp_path):
    """A copy of the project, as a fresh clone has it."""
    ignored = shutil.ignore_patterns(".git", "mlruns", "mlflow.db", "__pycache__", ".*_cache", ".venv")
    return shutil.copytree(PROJECT, tmp_path / "phi3-mlflow", ignore=ignored)


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A checkpoint that knows the answers of docs/support.csv."""
    folder = tmp_path_factory.mktemp("own")
    with (PROJECT / "docs" / "support.csv").open() as file:
        rows = list(csv.DictReader(file))
    facts = {
        row["question"]: {
            "sentence": "{answer}.",
            "questions": ["{subject}"],
            "pairs": {row["question"]: row["answer"]},
        }
        for row in rows
    }
    (folder / "facts.yaml").write_text(yaml.safe_dump(facts))
    train_miniature(folder / "phi-3", seed=0, epochs=500, file=folder / "facts.yaml")
    return folder / "phi-3"


def masked(text):
    """Return a line as it is on every machine: without its numbers, its rules and its spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(?:\.\d+)?", "#", text)).strip()


@pytest.mark.slow
def test_the_tour_of_the_readme(project, own_model, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "phi3")
    port = free_port()
    assert len(STEPS) == 6
    with (tmp_path / "server.log").open("w") as log:
        server = None
        try:
            for block, shown in STEPS:
                command = block.strip().replace("--env-manager uv", "--env-manager local").replace("5001", str(port))
                command = command.replace("/models/phi-3", str(own_model))
                if command.startswith("mlflow models serve"):
                    server = subprocess.Popen(["bash", "-c", f"exec {command}"], stdout=log, stderr=log)
                    wait_until(lambda: _answers(port), 120, 0.5)
                    continue
                done = subprocess.run(
                    ["bash", "-ec", command], capture_output=True, text=True, timeout=900, check=False
                )
                assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
                printed = {masked(line) for line in done.stdout.splitlines()}
                for line in shown.splitlines():
                    parts = [masked(part) for part in line.split(LEFT_OUT)]
                    assert any(all(part in text for part in parts) for text in printed), (command, line, done.stdout)
        finally:
            if server:
                for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                    process.kill()
                server.wait()


def _answers(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
    except OSError:
        return False
    return True
