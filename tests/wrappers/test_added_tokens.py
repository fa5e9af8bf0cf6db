"""Which added tokens control a model, and which are words."""

import pytest
from tokenizers import AddedToken

from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import KINDS, TEMPLATES


def _tokenizer(tmp_path, template, *added, special=(), kind="byte level", **config):
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in special])
    return ChatTokenizer(checkpoints.write(tmp_path, tokenizer, TEMPLATES.get(template, template), **config))


WORDS = ["Spain", "São Paulo", "don't", "\n\n", "    ", "→", "é", "日本"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["phi3", "phi4_mini", "deepseek"])
def test_added_words_are_text(tmp_path, kind, template):
    tokenizer = _tokenizer(tmp_path, template, *WORDS, kind=kind)
    assert [tokenizer.control_token_in(f"a {word} b") for word in WORDS] == [None] * len(WORDS)


def test_added_word_in_the_prose_of_a_template_is_text(tmp_path):
    tokenizer = _tokenizer(tmp_path, "qwen", "Spain", "\n", "assistant")
    assert tokenizer.control_token_in("a helpful assistant\nfrom Spain") is None


CONTROL = {
    "in the source of the template": ("deepseek", ["<\uff5cUser\uff5c>"], "<\uff5cUser\uff5c>"),
    "put together by the template": ("phi4_mini", ["<|assistant|>x", "<|user|>"], "<|user|>"),
    "in a branch for tools": ("qwen", ["<tool_call>"], "<tool_call>"),
    "with a special flag": ("phi3", [], "<unk>"),
    "brackets": ("llama2", ["[INST]"], "[INST]"),
    "the name of a role": ("{% for m in messages %}{{ 'USER: ' + m.content }}{% endfor %}", ["USER:"], "USER:"),
}


@pytest.mark.parametrize(("template", "added", "token"), CONTROL.values(), ids=CONTROL)
def test_special_tokens_and_tokens_of_the_template_are_control_tokens(tmp_path, template, added, token):
    tokenizer = _tokenizer(tmp_path, template, *added)
    assert tokenizer.control_token_in(f"a{token}b") == token


def test_added_token_that_only_another_template_uses_is_text(tmp_path):
    assert _tokenizer(tmp_path, "phi3", "<tool_call>").control_token_in("<tool_call>") is None


def test_token_that_the_configuration_calls_special_is_a_control_token(tmp_path):
    tokenizer = _tokenizer(
        tmp_path, "phi3", "<eot>", "<pad>", "<tag>", eos_token="<eot>", extra_special_tokens=["<pad>"]
    )
    tokens = [tokenizer.control_token_in(token) for token in ("<eot>", "<pad>", "<tag>")]
    assert tokens == ["<eot>", "<pad>", None]


def test_assistant_may_repeat_what_a_reply_can_hold(tmp_path):
    tokenizer = _tokenizer(tmp_path, "phi4_reasoning", "<think>", "</think>")
    reply = tokenizer.decode(tokenizer.encode("<think>a</think>b<|end|>"))
    assert reply == "<think>a</think>b"
    assert tokenizer.control_token_in(reply) == "<think>"
    assert tokenizer.control_token_in(reply, by_assistant=True) is None
    assert tokenizer.control_token_in("a<|end|>", by_assistant=True) == "<|end|>"


def _entry(content, **properties):
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    } | properties


CONFIGURED = {
    "strips what is on its right": {"7": _entry("<|user|>", rstrip=True, special=True)},
    "a token that tokenizer.json lacks": {"9000": _entry("<|tag|>", special=True)},
    "a word that tokenizer.json lacks": {"9000": _entry("Spain", special=False)},
    "not special here, but special there": {"6": _entry("<|end|>", special=False)},
    "not special, but named": {"3": _entry("<|endoftext|>", special=False, rstrip=True)},
}


@pytest.mark.parametrize("listed", CONFIGURED.values(), ids=CONFIGURED)
@pytest.mark.parametrize("split", [False, True])
def test_tokens_of_the_configuration_are_added_as_transformers_does(tmp_path, listed, split):
    folder = checkpoints.write(
        tmp_path, template=TEMPLATES["phi3"], added_tokens_decoder=listed, split_special_tokens=split
    )
    ours, theirs = ChatTokenizer(folder), checkpoints.reference(folder)
    for text in ("<|user|>\n a <|end|> b<|tag|>c Spain <|endoftext|> d", "a"):
        tokens = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == tokens
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)


def test_named_token_without_an_embedding_stays_text(tmp_path):
    tokenizer = checkpoints.byte_level()
    folder = checkpoints.write(tmp_path, tokenizer, TEMPLATES["phi3"], mask_token="[MASK]")
    assert ChatTokenizer(folder).encode("[MASK]") == tokenizer.encode("[MASK]").ids
