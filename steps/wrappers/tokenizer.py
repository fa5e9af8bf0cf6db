"""Phi-3's chat format, as the checkpoint's own tokenizer files define it.

Reads tokenizer.json, the chat template and the end tokens from a folder in Hugging Face or ONNX GenAI layout. Needs
neither transformers nor torch, so the ONNX wrapper starts without them. Safe to call from several threads.
"""

import contextlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from .added_tokens import add_configured_tokens, is_marker, named_tokens, special_tokens
from .chat_template import ChatTemplate, TemplateRefusal, Tools, template_source
from .detokenizer import BEFORE, Detokenizer, decoder_parts
from .tool_calls import CallSyntax

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Conversations that show which tokens a template writes. A template may refuse some of them.
CONVERSATIONS = (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",))
# What transformers takes for each of Phi-3's two lengths that config.json does not have.
DEFAULT_LENGTH = 4096


class ChatTokenizer:
    """Render, encode and decode, with the same results as transformers' `apply_chat_template` and `decode`.

    One thing is decoded otherwise: a run of byte tokens that is not UTF-8 as a whole keeps its whole characters.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._tokenizer = Tokenizer.from_file(str(self._directory / "tokenizer.json"))
        self._config = self._read("tokenizer_config.json")
        if "added_tokens_decoder" not in self._config:
            # In the older layout this file comes first.
            self._config |= self._read("special_tokens_map.json")
        self._named_tokens = named_tokens(self._config, self._tokenizer.padding)
        self._undecoded = add_configured_tokens(self._tokenizer, self._config, self._named_tokens)
        self._tokenizer.encode_special_tokens = bool(self._config.get("split_special_tokens"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._decoder = decoder_parts(self._tokenizer.decoder)

    @cached_property
    def template(self) -> ChatTemplate:
        """Return the chat template; raise ValueError if the checkpoint has none that can be used."""
        return ChatTemplate(template_source(self._directory, self._config), self._named_tokens)

    @property
    def highest_token(self) -> int:
        """Return the highest id that a text can be encoded to."""
        return max(self._tokenizer.get_vocab().values(), default=0)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; control tokens in it are encoded as control tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_chat(self, messages: list[dict[str, Any]], tools: Tools | None = None) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant's next turn begins."""
        return self.encode(self.render(messages, tools))

    def render(self, messages: list[dict[str, Any]], tools: Tools | None = None) -> str:
        """Return a conversation as text in the format of the checkpoint's chat template, or raise TemplateRefusal."""
        return self.template.render(messages, tools)

    @cached_property
    def call_syntax(self) -> CallSyntax | None:
        """Return how the model writes calls of tools; None if its chat template takes no tools."""
        try:
            return self.template.call_syntax
        except ValueError:
            return None

    def decoded_syntax(self, syntax: CallSyntax) -> CallSyntax:
        """Return the syntax of calls as a decoded text shows it, without special tokens."""
        return syntax.without(sorted(self._undecoded, key=len, reverse=True))

    def split(self, text: str) -> list[str | int]:
        """Return a text in pieces: the ids of the added tokens in it, and the texts between them."""
        ids = {token.content: number for number, token in self._tokenizer.get_added_tokens_decoder().items()}
        names = sorted(ids, key=len, reverse=True)
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text) if names else [text]
        return [ids.get(piece, piece) for piece in pieces if piece]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        detokenizer = self.detokenizer()
        return "".join([*map(detokenizer.push, tokens), detokenizer.finish()])

    def detokenizer(self) -> Detokenizer:
        """Return a new decoder for the tokens of one completion, one after the other."""
        return Detokenizer(self._form, *self._decoder)

    @property
    def vocabulary_size(self) -> int:
        """Return the number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def token_bytes(self, token: int) -> bytes:
        """Return what one token writes inside of a text, in UTF-8; a special token writes its name."""
        form: str | None = self._tokenizer.id_to_token(token)
        if form is None:
            return b""
        if form in self._undecoded:
            return form.encode()
        decode, bytes_of = self._decoder
        content = bytes_of(form)
        return decode([BEFORE, form])[len(BEFORE) :].encode() if content is None else content

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Return how many tokens each text has, in batches of 1,000 texts."""
        counts: list[int] = []
        rest = iter(texts)
        while batch := list(islice(rest, 1000)):
            counts += [
                len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ]
        return counts

    def control_token_in(self, text: str, by_assistant: bool = False) -> str | None:
        """Return the first control token that a text contains, or None.

        Control tokens are the special ones and those that the chat template writes around messages. In a text by the
        assistant only those count that its own replies never hold: decoding leaves special tokens out.
        """
        return next(
            (
                token
                for token in self.control_tokens
                if token in text and (token in self._undecoded or not by_assistant)
            ),
            None,
        )

    @cached_property
    def guide(self) -> "LLTokenizer":
        """Return the tokenizer as llguidance needs it, made when a request first asks for a grammar."""
        from llguidance import LLTokenizer

        return LLTokenizer(self._tokenizer.to_str(), eos_token=sorted(self.end_tokens))

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
    def control_tokens(self) -> list[str]:
        """Return the tokens that a message must not hold: the special ones, and those that the template writes."""
        added = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        special = {*self._undecoded, *special_tokens(self._config, self._named_tokens)}
        written = self._written_by_template()
        return [content for content in added if content in special or (is_marker(content) and content in written)]

    def _written_by_template(self) -> str:
        """Return what the chat template writes: its source, and conversations, because it may put tokens together."""
        try:
            template = self.template
        except ValueError:
            return ""
        rendered = [template.source]
        for roles in CONVERSATIONS:
            with contextlib.suppress(TemplateRefusal):
                rendered.append(template.render([{"role": role, "content": "a"} for role in roles]))
        return "\n".join(rendered)

    def _form(self, token: int) -> str | None:
        """Return how the vocabulary writes a token, or None if decoding leaves it out."""
        form: str | None = self._tokenizer.id_to_token(token)
        return None if form in self._undecoded else form

    def _read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the checkpoint, or nothing if it has no such file."""
        file = self._directory / name
        if not file.is_file():
            return {}
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
