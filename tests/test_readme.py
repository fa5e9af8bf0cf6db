"""The commands of README.md and docs/ are the ones that are tested, and the links lead somewhere."""

import re

import pytest
import yaml

from steps import command_line
from steps.config.schema import STEPS
from steps.config.validation import faults
from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text()
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
COMMANDS = [
    line.partition("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
]
FIRST = "pip install mlflow==3.17.2 uv && mlflow run . --env-manager uv"
SECOND = "mlflow run . -e test --env-manager uv"
REST = f"{SECOND} -P marks='slow and not service'"


def test_the_two_commands_stand_on_the_first_screen():
    top = "\n".join(README.splitlines()[:30])
    assert FIRST in top
    assert SECOND in top


def test_ci_runs_the_second_command_and_then_the_rest_after_installing_what_the_first_installs():
    script = (PROJECT / ".ci" / "run").read_text()
    assert "pip install --quiet mlflow==3.17.2 uv" in script
    assert script.strip().splitlines()[-3:] == [SECOND, REST, ".ci/services"]


def points(words):
    """Return the points of a step's overrides. The words of a launcher are checked, and left out."""
    launcher = [word for word in words if word.startswith("launcher")]
    command_line.check("launch", command_line.expand(command_line.parse(launcher)[1]))
    return command_line.expand(command_line.parse([word for word in words if word not in launcher])[1])


def test_every_project_run_is_one_that_starts():
    entry_points = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]
    runs = {command.partition("#")[0].strip() for command in COMMANDS if "mlflow run ." in command}
    assert len(runs) >= 6
    for command in runs:
        name = (re.findall(r"-e (\w+)", command) or ["main"])[0]
        assert name in entry_points
        values = [
            double or single or bare
            for double, single, bare in re.findall(r"-P (?:\"([^\"]*)\"|'([^']*)'|(\S+))", command)
        ]
        if name not in ("test", "benchmark"):
            needs = ["model.path=."] if "model=local" in values and not any("path" in v for v in values) else []
            command_line.check(name, points([*values, *needs]))


def test_every_project_run_names_its_environment_manager():
    """Without one, `mlflow run` needs conda."""
    runs = [command for command in COMMANDS if "mlflow run ." in command]
    assert [command for command in runs if "--env-manager" not in command] == []


def test_every_python_command_composes():
    commands = [command for command in COMMANDS if command.startswith("python -m steps.")]
    assert len(commands) >= 2
    for command in commands:
        name, *words = command.removeprefix("python -m steps.").split()
        for job in points(words):
            config = command_line.compose(name, job)
            assert isinstance(config, STEPS[name])
            assert faults(config) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_names_every_page():
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in README] == []
