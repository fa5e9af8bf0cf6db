"""Phi-3's chat format, as the checkpoint's own tokenizer files define it.

Reads tokenizer.json, the chat template and the end tokens from a folder in Hugging Face or ONNX GenAI layout. Needs
neither transformers nor torch, so the ONNX wrapper starts without them. Safe to call from several threads.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

# What transformers takes for each of Phi-3's two lengths that config.json does not have.
DEFAULT_LENGTH = 4096


class ChatTokenizer:
    """Render, encode and decode, with the same results as transformers' `apply_chat_template` and `decode`."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._tokenizer = Tokenizer.from_file(str(self._directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._config = self._read("tokenizer_config.json")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; control tokens in it are encoded as control tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's next turn begins."""
        return self.encode(self.render(messages))

    def render(self, messages: list[dict[str, str]]) -> str:
        """Return a conversation as text in the format of the checkpoint's chat template."""
        tokens = {name: self._special(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return self._template.render(messages=messages, add_generation_prompt=True, **tokens)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids, without control tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Return how many tokens each text has, in batches of 1,000 texts."""
        counts: list[int] = []
        rest = iter(texts)
        while batch := list(islice(rest, 1000)):
            counts += [
                len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ]
        return counts

    def control_token_in(self, text: str) -> str | None:
        """Return the first control token that a text contains, or None."""
        return next((token for token in self._control_tokens if token in text), None)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Return the ids that end a completion, from the generation and the model configuration."""
        configs = [
            self._read("generation_config.json"),
            self._read("config.json"),
            self._read("genai_config.json").get("model", {}),
        ]
        ids: set[int] = set()
        for config in configs:
            end = config.get("eos_token_id")
            ids.update(end if isinstance(end, list) else [] if end is None else [end])
        return frozenset(ids)

    @cached_property
    def context_length(self) -> int:
        """Return how many tokens prompt and completion may have together.

        A checkpoint with LongRoPE is limited to the length of its short factors. Beyond it, everything cached for a
        sequence would have to be computed again, while the other rows of the batch have lengths of their own.
        """
        config = self._read("config.json")
        length = self._read("genai_config.json").get("model", {}).get("context_length")
        length = int(length or config.get("max_position_embeddings", DEFAULT_LENGTH))
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        # transformers looks for the limit outside of the rotary embedding's parameters only.
        default = DEFAULT_LENGTH if "short_factor" in rope else length
        return min(length, int(config.get("original_max_position_embeddings") or default))

    @cached_property
    def _control_tokens(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @cached_property
    def _template(self) -> Template:
        file = self._directory / "chat_template.jinja"
        text = file.read_text(encoding="utf-8") if file.is_file() else self._config.get("chat_template")
        if not text:
            raise ValueError(f"{self._directory.name} has no chat template: chat_template.jinja is missing")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        return environment.from_string(text)

    def _special(self, name: str) -> str:
        token = self._config.get(name) or ""
        return str(token["content"] if isinstance(token, dict) else token)

    def _read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the checkpoint, or nothing if it has no such file."""
        file = self._directory / name
        if not file.is_file():
            return {}
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
