"""Configuration: every file composes, every key is read, MLproject agrees with it."""

import ast
from dataclasses import fields, is_dataclass

import pytest
import yaml

from steps import command_line
from steps.command_line.hydra_schemas import option_schemas
from steps.config import schema, validation
from steps.config.benchmark import BenchmarkConfig
from steps.config.serve import ServeConfig
from steps.errors import StepError
from steps.evaluation import prompt_set
from steps.main import plan
from steps.modes import MODES, build_faults, get_mode
from tests.conftest import PROJECT

GROUP_FILES = sorted(path.relative_to(PROJECT / "conf") for path in (PROJECT / "conf").glob("*/*.yaml"))
NEEDS = {
    "model=local": ["model.path=."],
    "model=phi3_mini_4k_onnx": ["mode=onnx", "precision=int4"],
    "precision=int4": ["mode=onnx"],
    "precision=int4_mixed": ["mode=onnx"],
    "precision=int8": ["mode=onnx"],
    "prompt_set=dataset": ["prompt_set.path=."],
}
STEP_NEEDS = {"score": ["input=questions.csv", "output=answers.csv"]}
BOUNDS = {"at_least", "above", "one_of"}
ENTRY_POINTS = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]


def _steps_with(group):
    return [name for name, kind in schema.STEPS.items() if group in {entry.name for entry in fields(kind)}]


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_option_composes_within_its_bounds(file):
    override = f"{file.parent}={file.stem}"
    steps = _steps_with(file.parent.name)
    assert steps
    for step_name in steps:
        overrides = [*NEEDS.get(override, []), override]
        config = command_line.compose(step_name, overrides)
        if file.parent.name not in ("generation", "prompt_set"):  # a prompt set is named after its file
            assert getattr(config, file.parent.name).name == file.stem
        assert validation.faults(config) == []
        if step_name == "build":
            lacking = get_mode(config.mode.name).lacking
            assert [fault for fault in build_faults(config) if "not installed" not in fault or not lacking] == []


@pytest.mark.parametrize("step_name", schema.STEPS)
def test_every_step_composes_without_overrides(step_name):
    config = command_line.compose(step_name, STEP_NEEDS.get(step_name, []))
    assert isinstance(config, schema.STEPS[step_name])
    assert validation.faults(config) == []


def test_the_main_job_has_five_variants_or_more_and_uses_every_mode():
    own, points = plan([])
    assert own == []
    assert len(points) >= 5
    # All that need nothing that this project does not install.
    expected = {name for name in MODES if not get_mode(name).optional_packages}
    assert {command_line.compose("build", point).mode.name for point in points} == expected


@pytest.mark.slow
def test_overrides_of_main_reach_every_variant_and_sweeps_multiply_them():
    own, points = plan(["model.seed=3", "generation.temperature=0,0.5", "registered_model=other"])
    assert own == ["registered_model=other"]
    assert len(points) == 2 * len(plan([])[1])
    assert all("model.seed=3" in point for point in points)


def test_an_override_of_main_reaches_only_the_variants_that_have_the_key():
    _, points = plan(["mode.device=cpu"])
    with_device = [point for point in points if "mode.device=cpu" in point]
    assert with_device
    assert len(with_device) < len(points)
    assert {command_line.compose("build", point).mode.name for point in with_device} == {"pyfunc"}


def test_an_override_of_main_that_no_variant_has_is_refused():
    with pytest.raises(StepError, match=r"model\.path is not a key of the default model"):
        plan(["model.path=/models"])


def _option_schemas():
    return [kind for schemas in option_schemas().values() for kind in schemas.values()]


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
    kinds = (schema.MainConfig, schema.ScoreConfig, ServeConfig, BenchmarkConfig, *_option_schemas())
    keys = [key for kind in kinds for key in _keys(kind)]
    unread = {key for key in keys if key.rpartition(".")[2] not in read}
    # The columns are read together, by `asdict`.
    assert {key for key in unread if not key.startswith("prompt_set.columns.")} == set()


def test_every_number_has_bounds():
    """A number without bounds is a number that nobody thought about."""
    numbers = [
        f"{kind.__name__}.{entry.name}"
        for kind in (
            *_dataclasses(schema.MainConfig),
            schema.ScoreConfig,
            ServeConfig,
            BenchmarkConfig,
            *_option_schemas(),
        )
        for entry in fields(kind)
        if entry.type in (int, float, int | None) and not entry.metadata.keys() & BOUNDS
    ]
    assert numbers == []


def _dataclasses(kind):
    yield kind
    for entry in fields(kind):
        if is_dataclass(entry.type):
            yield from _dataclasses(entry.type)


@pytest.mark.parametrize("entry_point", [name for name in ENTRY_POINTS if name != "test"])
def test_mlproject_declares_keys_with_their_defaults(entry_point):
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
        assert parameter.get("default") == chosen
