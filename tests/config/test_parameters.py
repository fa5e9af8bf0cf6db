"""A build configuration becomes MLflow's parameters and back."""

import pytest
from omegaconf import MISSING

from steps import command_line
from steps.config.parameters import from_params, to_params
from steps.config.schema import BuildConfig, Example, FolderModel, MiniatureModel, Precision, QuantizedPrecision
from steps.modes import get_mode

CONFIGS = {
    "defaults": [],
    "a float with many digits": ["generation.temperature=0.123456789"],
    "text that looks like JSON": ["prompting.system=[brief]"],
    "text that looks like null": ["prompting.system=null"],
    "text with quotes": ['prompting.system=it\'s "so"'],
    "text that looks like an interpolation": ["prompting.system=${oc.env:HOME} and ${foo} and ${"],
    "examples": ["prompting=few_shot"],
    "int4": ["mode=onnx", "precision=int4", "precision.block_size=64"],
    "a folder": ["model=local", "model.path=/models/a, b"],
}


def _config(*arguments):
    (job,) = command_line.expand(command_line.parse(list(arguments))[1])
    return command_line.compose("build", job)


@pytest.mark.parametrize("arguments", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_survives_the_way_through_parameters(arguments):
    config = _config(*arguments)
    params = to_params(config)
    assert all(isinstance(value, str) for value in params.values())
    empty = BuildConfig(model=type(config.model)(), mode=type(config.mode)(), precision=type(config.precision)())
    assert from_params(params, empty) == config


def test_parameters_are_written_as_they_are_typed():
    params = to_params(_config("mode=onnx", "generation.temperature=0.5"))
    assert params["mode"] == "onnx"
    assert params["model"] == "miniature"
    assert params["generation.temperature"] == "0.5"
    assert "mode.name" not in params


def test_parameters_of_an_earlier_version_are_read_as_far_as_they_are_known():
    params = to_params(_config("mode=onnx")) | {"mode.device": "auto", "precision.block_size": "32", "gone": "x"}
    empty = BuildConfig(model=MiniatureModel(), mode=get_mode("onnx").settings(), precision=Precision())
    assert from_params(params, empty) == _config("mode=onnx")


@pytest.mark.parametrize(("text", "temperature"), [("' 0.5'", 0.5), ("'0.5 '", 0.5), ("'0.5", 0.0)])
def test_a_number_in_the_quotes_of_a_shell_is_read_as_a_number(text, temperature):
    empty = BuildConfig(model=MiniatureModel(), mode=get_mode("onnx").settings(), precision=Precision())
    assert from_params({"generation.temperature": text}, empty).generation.temperature == temperature


def test_a_value_that_does_not_fit_its_key_leaves_the_default():
    empty = BuildConfig(model=FolderModel(), mode=get_mode("onnx").settings(), precision=QuantizedPrecision())
    config = from_params({"generation.max_tokens": "many", "prompting.examples": "[truncated"}, empty)
    assert config.generation.max_tokens == 256
    assert config.prompting.examples == []
    assert config.model.name == MISSING


def test_an_interpolation_in_the_text_of_an_example_is_kept():
    params = to_params(_config("mode=onnx")) | {"prompting.examples": '[{"user": "${foo}", "assistant": "${"}]'}
    empty = BuildConfig(model=MiniatureModel(), mode=get_mode("onnx").settings(), precision=Precision())
    assert from_params(params, empty).prompting.examples == [Example(user="${foo}", assistant="${")]
