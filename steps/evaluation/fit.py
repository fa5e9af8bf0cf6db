"""Whether the rows of a prompt set fit a variant: no control token in a text, no prompt beyond the context.

Reads the tokenizer and the configuration of the logged model, never its weights, so that it is known before any
model is loaded.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet, shortened
from steps.evaluation.prompt_set.row import Row
from steps.output import suppress_output
from steps.store.variants import Variant
from steps.wrappers.tokenizer import ChatTokenizer

FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "genai_config.json"}
# Tokens that a chat template may put around one message, generously.
AROUND_A_MESSAGE = 16
# A text has about as many tokens as its words have by themselves; how many more it could have is not worth knowing.
SLACK = 2
LONG_WORD, KNOWN_WORDS = 64, 65536


@dataclass
class Fit:
    """What is special about some rows for a variant, by their index."""

    control_tokens: dict[int, str] = field(default_factory=dict)  # where a text holds which
    too_long: dict[int, str] = field(default_factory=dict)  # by how much
    prompts: dict[int, str] = field(default_factory=dict)  # several turns as one text, for interface=prompt
    unaskable: dict[int, str] = field(default_factory=dict)  # why


def check(variants: list[Variant], prompt_set: PromptSet, over_context: str) -> dict[str, Fit]:
    """How the rows fit each variant, by model id; a variant whose tokenizer cannot be read is left out.

    Raises StepError with every row that holds a control token, and with `over_context=refuse` every one that is
    beyond a variant's context.
    """
    fits: dict[str, Fit] = {}
    for variant in variants:
        # A model that lost its files must not keep the others from it: it is told of where it is loaded.
        with contextlib.suppress(Exception):
            fits[variant.model_id] = fit(variant, prompt_set)
    _refuse(fits.values(), prompt_set, over_context)
    return fits


def check_one(variant: Variant, prompt_set: PromptSet, over_context: str) -> Fit:
    """How the rows fit one variant; raises StepError as `check` does."""
    found = fit(variant, prompt_set)
    _refuse([found], prompt_set, over_context)
    return found


def _refuse(fits: Iterable[Fit], prompt_set: PromptSet, over_context: str) -> None:
    faults: dict[str, None] = {}  # an ordered set: variants share most of their faults
    for found in fits:
        rows = found.control_tokens | (found.too_long if over_context == "refuse" else {})
        faults |= dict.fromkeys(
            f"{prompt_set.name}: {prompt_set.place(index)}: {fault}" for index, fault in sorted(rows.items())
        )
    if faults:
        raise StepError(*shortened(list(faults)))


def fit(variant: Variant, prompt_set: PromptSet, reserve: int = 1) -> Fit:
    """How the rows fit one variant, with room for an answer of so many tokens."""
    found = Fit()
    with tokenizer_of(variant) as tokenizer:
        context = tokenizer.context_length
        has_room = _room(tokenizer, reserve)
        around = _around(tokenizer) if variant.params["interface"] == "prompt" else None
        for index, row in enumerate(prompt_set.rows):
            if fault := _control_token(tokenizer, row):
                found.control_tokens[index] = fault
            elif not has_room(row):
                length = len(tokenizer.encode_chat(row.conversation))
                if length + reserve > context:
                    found.too_long[index] = f"its prompt has {length} tokens, the context of {variant.name} {context}."
            if around and not row.is_plain:
                _as_prompt(found, index, tokenizer.render(row.conversation), variant, around)
    return found


@contextlib.contextmanager
def tokenizer_of(variant: Variant) -> Iterator[ChatTokenizer]:
    """The tokenizer, chat template and limits of a logged model."""
    import mlflow

    client = mlflow.MlflowClient()
    with TemporaryDirectory(prefix="phi3-") as folder, suppress_output():
        if variant.params["mode"] == "transformers":
            where = "model"
        else:
            (where,) = [entry.path for entry in client.list_logged_model_artifacts(variant.model_id, "artifacts")]
        location = client.get_logged_model(variant.model_id).artifact_location
        for entry in client.list_logged_model_artifacts(variant.model_id, where):
            if Path(entry.path).name in FILES:
                mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{entry.path}", dst_path=folder)
        yield ChatTokenizer(folder)


def _control_token(tokenizer: ChatTokenizer, row: Row) -> str | None:
    for number, (_, content) in enumerate(row.messages):
        if token := tokenizer.control_token_in(content):
            return f"messages[{number}].content holds the control token {token}."
    return None


def _room(tokenizer: ChatTokenizer, reserve: int) -> Callable[[Row], bool]:
    """Whether a row is surely within the context: most are, and a tokenizer is slow to count all of their tokens."""
    shortest = len(tokenizer.encode_chat([{"role": "user", "content": "a"}]))
    room = tokenizer.context_length - shortest - reserve
    tokens = lru_cache(KNOWN_WORDS)(lambda word: len(tokenizer.encode(word)))

    def has_room(row: Row) -> bool:
        around = AROUND_A_MESSAGE * len(row.messages)
        # No tokenizer makes more tokens than bytes.
        if around + sum(len(content.encode()) for _, content in row.messages) < room:
            return True
        return around + SLACK * sum(_tokens_at_most(content, tokens) for _, content in row.messages) < room

    return has_room


def _tokens_at_most(content: str, tokens: Callable[[str], int]) -> int:
    """The tokens of all words by themselves; of a long one its bytes."""
    # Between two spaces is no word, but each of them may be a token.
    return sum(tokens(word) or 1 if len(word) <= LONG_WORD else len(word.encode()) for word in content.split(" "))


def _around(tokenizer: ChatTokenizer) -> tuple[str, str]:
    """What the chat template puts before and after the text of a single message."""
    mark = "\x1aprompt\x1a"
    before, _, after = tokenizer.render([{"role": "user", "content": mark}]).partition(mark)
    return before, after


def _as_prompt(found: Fit, index: int, rendered: str, variant: Variant, around: tuple[str, str]) -> None:
    """Several turns as one prompt: our wrappers take the whole format, MLflow's flavour puts it around by itself."""
    before, after = around
    if variant.params["mode"] != "transformers":
        found.prompts[index] = rendered
    elif rendered.startswith(before) and rendered.endswith(after):
        found.prompts[index] = rendered[len(before) : len(rendered) - len(after)]
    else:
        found.unaskable[index] = "its system message has no place in the prompt template of mode=transformers"
