"""A tokenizer with tokens that the model does not have is refused."""

import json

import pytest
from tokenizers import AddedToken

from steps.checkpoints.vocabulary import check_vocabulary
from steps.errors import StepError
from tests.wrappers import checkpoints


def _folder(folder, added=(), **config):
    tokenizer = checkpoints.byte_level()
    tokenizer.add_tokens([AddedToken(word) for word in added])
    checkpoints.write(folder, tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    return folder, tokenizer.get_vocab_size()


@pytest.mark.parametrize("more", [0, 1, 64])
def test_a_model_may_have_more_tokens_than_its_tokenizer(tmp_path, more):
    _, size = _folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size + more}))
    check_vocabulary(tmp_path)


def test_tokens_without_an_embedding_are_refused(tmp_path):
    _, size = _folder(tmp_path)
    folder, _ = _folder(tmp_path, ["Spain", "France"], vocab_size=size)
    with pytest.raises(StepError, match=rf"up to the id {size + 1}, and the model has only the ids below {size}"):
        check_vocabulary(folder)


def test_an_exported_model_is_held_against_its_own_configuration(tmp_path):
    folder, size = _folder(tmp_path, vocab_size=10**6)
    (folder / "genai_config.json").write_text(json.dumps({"model": {"vocab_size": size - 1}}))
    with pytest.raises(StepError, match=f"ids below {size - 1}"):
        check_vocabulary(folder)


def test_a_configuration_without_a_size_is_left_to_its_reader(tmp_path):
    check_vocabulary(_folder(tmp_path)[0])


@pytest.mark.parametrize(("file", "value"), [("generation_config.json", "x"), ("config.json", [2, 1.5])])
def test_end_tokens_that_are_no_tokens_are_refused(tmp_path, file, value):
    folder, size = _folder(tmp_path)
    (folder / file).write_text(json.dumps({"vocab_size": size, "eos_token_id": value}))
    with pytest.raises(StepError, match=r"eos_token_id in '.*' must be a whole number or a list of them, got "):
        check_vocabulary(folder)
