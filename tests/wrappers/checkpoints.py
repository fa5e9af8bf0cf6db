"""Chat templates, and small tokenizers of both kinds that language models have, in a folder as in a checkpoint."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
MERGES = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("日", "本")]
LETTERS = "abcdefghijklmnopqrstuvwxyz日本"
TEMPLATES = {
    file.stem: file.read_text(encoding="utf-8")
    for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}


def byte_fallback():
    """A tokenizer as Phi-3 and Llama 2 have it: words begin with ▁; the rest is written in bytes such as <0xE2>."""
    tokens = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *LETTERS,
        *map("".join, MERGES),
        "▁the",
        "▁cat",
    ]
    merges = [*MERGES, ("▁", "the"), ("▁", "cat")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def byte_level():
    """A tokenizer as Phi-4 and Llama 3 have it: the vocabulary is made of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The bytes of 日本, cut in the middle of a character.
    merges = [*MERGES[:4], ("Ġ", "the"), ("æ", "Ĺ"), ("¥", "æ")]
    tokens = [*SPECIAL, *alphabet, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


KINDS = {"byte fallback": byte_fallback, "byte level": byte_level}


def write(folder, tokenizer=None, template=None, **config):
    """Write a checkpoint without weights: tokenizer, chat template and configuration. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"}
    content = named | config
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3", "max_position_embeddings": 512}))
    if template is not None:
        (folder / "chat_template.jinja").write_bytes(template.encode())
    return folder


def reference(folder):
    """The same checkpoint as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def rendered(tokenizer, messages):
    """A conversation as transformers renders it."""
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
