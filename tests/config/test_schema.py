"""Configuration: every file composes, every key is read, MLproject agrees with it."""

import ast
from dataclasses import fields, is_dataclass

import pytest
import yaml

from steps import command_line
from steps.config import schema, validation
from steps.evaluation import prompt_set
from steps.main import plan
from tests.conftest import PROJECT

GROUP_FILES = sorted(path.relative_to(PROJECT / "conf") for path in (PROJECT / "conf").glob("*/*.yaml"))
NEEDS = {
    "model=local": ["model.path=."],
    "precision=int4": ["mode=onnx"],
    "prompt_set=dataset": ["prompt_set.path=."],
}
ENTRY_POINTS = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]


def _steps_with(group):
    return [name for name, kind in schema.SCHEMAS.items() if group in {entry.name for entry in fields(kind)}]


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_option_composes_and_converts(file):
    override = f"{file.parent}={file.stem}"
    steps = _steps_with(file.parent.name)
    assert steps
    for step_name in steps:
        config = command_line.compose(step_name, [*NEEDS.get(override, []), override])
        if file.parent.name not in ("generation", "prompt_set"):  # a prompt set is called as its file is
            assert getattr(config, file.parent.name).name == file.stem
        assert validation.faults(config) == []


@pytest.mark.parametrize("step_name", schema.SCHEMAS)
def test_every_step_composes_as_it_stands(step_name):
    config = command_line.compose(step_name, [])
    assert isinstance(config, schema.SCHEMAS[step_name])
    assert validation.faults(config) == []


def test_the_main_job_has_five_variants_or_more():
    own, points = plan([])
    assert own == []
    assert len(points) >= 5
    modes = {command_line.compose("build", point).mode.name for point in points}
    assert modes == set(validation.PRECISIONS)


def test_overrides_of_main_reach_every_variant_and_sweeps_multiply_them():
    own, points = plan(["model.seed=3", "generation.temperature=0,0.5", "registered_model=other"])
    assert own == ["registered_model=other"]
    assert len(points) == 2 * len(plan([])[1])
    assert all("model.seed=3" in point for point in points)


def _keys(kind, prefix=""):
    for entry in fields(kind):
        yield prefix + entry.name
        if is_dataclass(entry.type):
            yield from _keys(entry.type, f"{prefix}{entry.name}.")


def test_every_key_is_read_somewhere():
    read = set()
    for file in (PROJECT / "steps").rglob("*.py"):
        if file.name not in ("schema.py", "validation.py"):
            tree = ast.parse(file.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unread = {key for key in _keys(schema.MainConfig) if key.rpartition(".")[2] not in read}
    assert unread == set()


@pytest.mark.parametrize("entry_point", [name for name in ENTRY_POINTS if name != "test"])
def test_placeholders_of_mlproject_are_keys_with_the_same_default(entry_point):
    declared = ENTRY_POINTS[entry_point]["parameters"]
    command = ENTRY_POINTS[entry_point]["command"]
    assert command.startswith(f"python -m steps.{entry_point}")
    assert '"' not in command
    assert "'" not in command
    config = command_line.compose(entry_point, [])
    for name, parameter in declared.items():
        assert f"{name}={{{name}}}" in command
        value = getattr(config, name)
        chosen = prompt_set.name_of(value) if name == "prompt_set" else getattr(value, "name", value)
        assert parameter["default"] == chosen
