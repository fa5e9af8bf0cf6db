"""The commands of docs/ and CONTRIBUTING.md, typed in the order of each page, where a quick main job has run.

The README's own commands are typed by test_main_job.py, and the Python of docs/sample.md and docs/scale.md runs in
tests/handover and tests/batch.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.project import Project
from tests.support import free_port

pytestmark = pytest.mark.slow

# In this order: the last ones build most variants.
PAGES = [
    *("evaluation", "promotion", "precision", "serving", "image", "azure", "checkpoints", "scale"),
    *("sample", "steps", "prompt_sets"),
]
# Why a command is not typed: what its line has in it, and a reason. Nothing else may be left out.
LEFT_OUT = {
    "pip install": "it would change the environment of the tests",
    "python3.11 -m venv": "it would make another environment",
    "az ": "it needs the cloud",
    "docker ": "it needs docker",
    "kubectl ": "it needs a cluster",
    "USER@HOST": "it is a form to fill in: tests/promotion/test_postgresql.py",
    "launcher=": "it needs a package of its own: tests/command_line/test_launching.py",
    "model=smollm2": "it needs packages of its own: tests/checkpoints/test_smollm2.py",
    "python -m tests.benchmarks": "it takes many minutes",
    "python -m steps.main ": "it is the main job: tests/end_to_end/test_main_job.py",
    "ray start": "it needs Ray: tests/command_line/test_ray.py",
    "guidellm run": "it needs an environment of its own",
    "ruff check": "the test command runs it",
}
SERVERS = ("mlflow models serve", "mlflow run . -e serve")


def lines_of(page):
    """Return the shell lines of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    return [line.partition("  #")[0].strip() + " " for block in blocks for line in block.splitlines()]


def reason_to_leave_out(line):
    return next((reason for part, reason in LEFT_OUT.items() if part in line), None)


@pytest.fixture(scope="module")
def project(tmp_path_factory, caches, checkpoint):
    """Return the project after a quick main job, with the files that the pages call the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        project = Project(tmp_path_factory.mktemp("docs") / "phi3-mlflow", caches)
        # The first champion is surely worse than the second, so that there is one to go back to.
        project.run("-P", "variants=pyfunc-fp32-chat-brief")
        project.first = project.run("-P", "variants=quick")
        write_files(project.folder)
        yield project


def write_files(folder):
    """Write the prompt sets and tables that the pages name."""
    import pandas

    facts = (PROJECT / "conf" / "prompt_set" / "facts.jsonl").read_text().splitlines()
    (folder / "my.jsonl").write_text("\n".join(facts[:8]))
    question = "What is the capital of Spain?"
    choice = {"id": "1", "prompt": question, "choices": ["Madrid", "Rome"], "target": "Madrid"}
    (folder / "quiz.jsonl").write_text(json.dumps(choice))
    table = pandas.DataFrame({"question": [question] * 3, "text": [question] * 3})
    table.to_parquet(folder / "questions.parquet")
    table.to_csv(folder / "questions.csv", index=False)
    (folder / "keys.txt").write_text("secret\n")


def test_no_page_with_commands_is_missing():
    pages = [page for page in (PROJECT / "docs").glob("*.md") if lines_of(page)]
    assert {page.stem for page in pages} == set(PAGES)


@pytest.mark.parametrize("page", [*(f"docs/{page}.md" for page in PAGES), "CONTRIBUTING.md"])
def test_every_command_of_a_page_works(project, page):
    port, typed = str(free_port()), 0
    with contextlib.ExitStack() as stack:
        for line in lines_of(PROJECT / page):
            if reason_to_leave_out(line):
                continue
            command = line.replace("--env-manager uv", "--env-manager local").replace("5001", port)
            if command.startswith(SERVERS):
                # One server at a time: each waits for the port of the one before.
                stack.close()
                chosen = "" if port in command or "-e serve" not in command else f" -P port={port}"
                stack.enter_context(project.serving(command + chosen, port))
            else:
                done = project.type("bash", "-ec", command)
                assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
                # curl ends with 0 also for a reply that is an error.
                assert '"error": {' not in done.stdout, command + done.stdout
            typed += 1
    assert typed or page in ("docs/precision.md", "docs/checkpoints.md")
