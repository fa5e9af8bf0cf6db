"""A mode is one file, a line of the map and an option in conf/: nothing else has to know it."""

import json

import mlflow
import pytest
from hydra.core.config_store import ConfigStore

from steps import command_line
from steps.build import build
from steps.command_line import composition
from steps.errors import StepError
from steps.evaluate import evaluate
from steps.evaluation import scorecard
from steps.modes import MODES, build_faults, get_mode
from steps.store.variants import find_variants
from tests.modes.echo import EchoSettings

# Those that need nothing that this project does not install, and those for which it is installed.
INSTALLED_MODES = [name for name in MODES if not get_mode(name).lacking]


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setitem(MODES, "echo", "tests.modes.echo")
    store = ConfigStore.instance()
    monkeypatch.setitem(store.repo, "mode", dict(store.repo.get("mode", {})))
    store.store(group="mode", name="echo", node=EchoSettings)  # the place of conf/mode/echo.yaml
    # The files of conf/ do not change while a process runs.
    composition.option_names.cache_clear()
    yield
    composition.option_names.cache_clear()


def test_a_new_mode_is_built_evaluated_and_read_back(echo, checkpoint, tmp_path):
    build(command_line.compose("build", ["mode=echo", "mode.times=2"]), checkpoint)
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    assert (variant.name, variant.mode.name, variant.config.mode) == (
        "echo-fp32-chat-times2",
        "echo",
        EchoSettings(times=2),
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": word, "prompt": word, "target": word}) + "\n" for word in ("one", "two")))
    config = command_line.compose("evaluate", [f"prompt_set.path='{rows}'", "evaluate.speed=false"])
    assert evaluate(config).model_ids == [variant.model_id]
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    (sha256,) = [json.loads(mark)["prompt_set_sha256"] for key, mark in variant.tags.items() if "scorecard" in key]
    assert scorecard.read(variant, sha256).answers == ["one one", "two two"]
    assert scorecard.metrics_of(variant, sha256)["answer_match/mean"] == 1


def test_a_new_mode_has_its_own_keys_and_bounds(echo):
    command_line.check("build", [["mode=echo", "mode.times=3"]])
    for overrides, sentence in (
        (["mode=echo", "mode.times=4"], r"mode\.times must be at least 1 and at most 3, got 4\."),
        (["mode=echo", "mode.device=cpu"], r"mode\.device is not a key of mode=echo, it is a key of mode=pyfunc\."),
        (["mode=echo", "precision=int4"], r"precision=int4 is not offered by mode=echo, which has fp32\."),
        (["mode=eco"], r"Unknown mode 'eco'\. Did you mean 'echo'\?"),
    ):
        with pytest.raises(StepError, match=sentence):
            command_line.check("build", [overrides])


def test_an_unknown_mode_is_answered_with_the_nearest():
    with pytest.raises(StepError, match=r"Unknown mode 'onx'\. Did you mean 'onnx'\?"):
        get_mode("onx")


@pytest.mark.parametrize("name", INSTALLED_MODES)
def test_every_mode_builds_its_precisions_and_pins_its_packages(name):
    mode = get_mode(name)
    assert mode.name == name
    assert all("==" in requirement and "+" not in requirement for requirement in mode.requirements)
    for precision in mode.precisions:
        config = command_line.compose("build", [f"mode={name}", f"precision={precision}"])
        assert list(build_faults(config)) == []
        assert isinstance(config.mode, mode.settings)
