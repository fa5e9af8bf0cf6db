"""The tour of the README: its commands, what it says that they print, and the user's own model."""

import csv
import re

import yaml

from steps.checkpoints.miniature import train_miniature
from tests.conftest import PROJECT

TOUR = (PROJECT / "README.md").read_text().partition("## A tour")[2].partition("\n## ")[0]
# Each command with what the README says that it prints.
COMMANDS = [
    (command.strip(), shown) for command, shown in re.findall(r"```sh\n(.*?)```(?:\s*```\n(.*?)```)?", TOUR, re.S)
]
LEFT_OUT = "…"


def train_own_model(folder):
    """Train a checkpoint that knows the answers of docs/support.csv; return its folder."""
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


def missing_lines(shown, output):
    """Return the lines of the README that were not printed. Numbers differ, and `…` stands for what is left out."""
    printed = {_masked(line) for line in output.splitlines()}
    return [
        line
        for line in shown.splitlines()
        if not any(all(_masked(part) in text for part in line.split(LEFT_OUT)) for text in printed)
    ]


def _masked(text):
    """Return a line as it is on every machine: without its numbers, its rules and its spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(?:\.\d+)?", "#", text)).strip()
