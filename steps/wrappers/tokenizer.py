"""Phi-3's chat format as the checkpoint's own tokenizer files define it.

Reads tokenizer.json, the chat template and the end tokens of a folder in Hugging Face or ONNX GenAI
layout. Needs neither transformers nor torch, so the ONNX wrapper starts without them, and its calls
are safe from several threads.
"""

import json
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class ChatTokenizer:
    """Render, encode and decode; equal to transformers' `apply_chat_template` and `decode`."""

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)
        self._tokenizer = Tokenizer.from_file(str(self._directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._config = self._read("tokenizer_config.json")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which control tokens are control tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins."""
        return self.encode(self.render(messages))

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation as text, by the checkpoint's chat template."""
        tokens = {name: self._special(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return self._template.render(messages=messages, add_generation_prompt=True, **tokens)

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, without control tokens."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

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
        """The first control token that stands in a text, if any does."""
        return next((token for token in self._control_tokens if token in text), None)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Ids after which a completion ends, from the generation and the model configuration."""
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
        """Tokens that prompt and completion may have together.

        Of a checkpoint with LongRoPE those for which its short factors hold: beyond, all that was cached of a sequence
        would have to be computed anew, and the other rows of a batch have a length of their own.
        """
        config = self._read("config.json")
        whole = self._read("genai_config.json").get("model", {}).get("context_length")
        whole = int(whole or config["max_position_embeddings"])
        return min(whole, config.get("original_max_position_embeddings") or whole)

    @cached_property
    def _control_tokens(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @cached_property
    def _template(self) -> Any:
        file = self._directory / "chat_template.jinja"
        text = file.read_text(encoding="utf-8") if file.is_file() else self._config.get("chat_template")
        if not text:
            raise ValueError(f"no chat template in {self._directory.name}: chat_template.jinja is missing")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        return environment.from_string(text)

    def _special(self, name: str) -> str:
        token = self._config.get(name) or ""
        return token["content"] if isinstance(token, dict) else token

    def _read(self, name: str) -> dict[str, Any]:
        file = self._directory / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
