"""Generation settings of a checkpoint that the wrappers do not have are refused, and all others are harmless."""

import json

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import Checkpoint
from steps.checkpoints.generation import lost_settings, refuse_lost_settings
from steps.errors import StepError
from steps.modes import get_mode

HARMLESS = {
    "as Phi-3 was published": {"bos_token_id": 1, "eos_token_id": [32000, 32001, 32007], "pad_token_id": 32000},
    "sampling, which the variant decides": {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50},
    "lengths, which the variant decides": {"max_length": 20, "max_new_tokens": 5},
    "the defaults": {
        "repetition_penalty": 1.0,
        "num_beams": 1,
        "min_length": 0,
        "typical_p": 1.0,
        "bad_words_ids": None,
    },
    "of beams without beams": {"length_penalty": 2.0, "early_stopping": True},
}
LOST = {
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "suppress_tokens": [5],
    "bad_words_ids": [[5]],
    "min_new_tokens": 5,
    "min_p": 0.1,
    "stop_strings": ["END"],
    "forced_bos_token_id": 7,
}


def _write(folder, settings, file="generation_config.json"):
    content = {"search": settings} if file == "genai_config.json" else settings
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["generation_config.json", "genai_config.json"])
@pytest.mark.parametrize("settings", HARMLESS.values(), ids=HARMLESS)
def test_settings_that_change_no_answer_are_accepted(tmp_path, file, settings):
    _write(tmp_path, settings, file)
    assert lost_settings(tmp_path) == []


@pytest.mark.parametrize("file", ["generation_config.json", "genai_config.json"])
@pytest.mark.parametrize("name", LOST)
def test_settings_that_would_be_lost_are_refused(tmp_path, file, name):
    _write(tmp_path, {name: LOST[name]}, file)
    with pytest.raises(StepError, match=rf"^{name} in '.*{file}' is .*, which this mode cannot do"):
        refuse_lost_settings(tmp_path)


def test_a_folder_without_settings_is_accepted(tmp_path):
    assert lost_settings(tmp_path) == []


@pytest.mark.parametrize("mode", ["pyfunc", "onnx"])
def test_both_wrappers_refuse_them_when_they_are_built(tmp_path, checkpoint, mode):
    (tmp_path / "tokenizer.json").write_bytes((checkpoint.directory / "tokenizer.json").read_bytes())
    _write(tmp_path, {"repetition_penalty": 1.1})
    source = Checkpoint(tmp_path, "huggingface", None, {})
    with (
        pytest.raises(StepError, match="repetition_penalty"),
        get_mode(mode).stage(source, command_line.compose("build", [f"mode={mode}"])),
    ):
        pass
