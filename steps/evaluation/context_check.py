"""Check whether a variant can be asked the rows of a prompt set.

Its chat template must render them, no text may hold a control token, and no prompt may be beyond the context.

Reads the tokenizer and the configuration of the logged model, never its weights, so that a fault is known before any
model is loaded.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from steps.checkpoints.prompting import around_user_message
from steps.errors import StepError
from steps.evaluation.prompt_set import PromptSet, shortened
from steps.evaluation.prompt_set.row import Row
from steps.output import suppress_output
from steps.store.variants import Variant
from steps.wrappers.chat_template import TemplateRefusal
from steps.wrappers.tokenizer import ChatTokenizer

TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "genai_config.json",
}
# Tokens that a chat template may put around one message: a generous bound.
AROUND_A_MESSAGE = 16


@dataclass
class ContextCheck:
    """What a variant cannot take as it is, by the index of the row.

    Attributes:
        control_tokens: Which text holds a control token.
        too_long: How far the prompt is beyond the context.
        prompts: Several turns as one text, for an interface that takes no conversations.
        unaskable: Why the row cannot be asked at all.
    """

    control_tokens: dict[int, str] = field(default_factory=dict)
    too_long: dict[int, str] = field(default_factory=dict)
    prompts: dict[int, str] = field(default_factory=dict)
    unaskable: dict[int, str] = field(default_factory=dict)


def check_variants(variants: Sequence[Variant], prompt_set: PromptSet, over_context: str) -> dict[str, ContextCheck]:
    """Return the check of each variant by model id. A variant whose tokenizer cannot be read is left out.

    Raises:
        StepError: With every row that holds a control token and, if `over_context` is "refuse", every row that is
            beyond a variant's context.
    """
    checks: dict[str, ContextCheck] = {}
    for variant in variants:
        # A model that lost its files must not stop the others: it fails when it is loaded.
        with contextlib.suppress(Exception):
            checks[variant.model_id] = context_check(variant, prompt_set)
    refuse(checks.values(), prompt_set, over_context)
    return checks


def refuse(checks: Iterable[ContextCheck], prompt_set: PromptSet, over_context: str) -> None:
    """Raise StepError with every row that `check_variants` refuses."""
    faults: dict[str, None] = {}  # an ordered set: variants share most of their faults
    for check in checks:
        rows = check.control_tokens | (check.too_long if over_context == "refuse" else {})
        faults |= dict.fromkeys(
            f"{prompt_set.name}: {prompt_set.place(index)}: {fault}" for index, fault in sorted(rows.items())
        )
    if faults:
        raise StepError(*shortened(list(faults)))


def context_check(variant: Variant, prompt_set: PromptSet, reserve: int = 1) -> ContextCheck:
    """Check one variant, keeping room for an answer of `reserve` tokens."""
    check = ContextCheck()
    with tokenizer_of(variant) as tokenizer:
        for index, row in enumerate(prompt_set.rows):
            if fault := _control_token_fault(tokenizer, row):
                check.control_tokens[index] = fault
        _check_roles(check, tokenizer, prompt_set.rows)
        _check_lengths(check, tokenizer, variant.name, prompt_set.rows, reserve)
        if not variant.interface.takes_conversations:
            _join_turns(check, tokenizer, variant, prompt_set.rows)
    return check


@contextlib.contextmanager
def tokenizer_of(variant: Variant) -> Iterator[ChatTokenizer]:
    """Fetch the tokenizer, chat template and limits of a logged model."""
    import mlflow

    client = mlflow.MlflowClient()
    location = client.get_logged_model(variant.model_id).artifact_location

    def fetch(path: str) -> None:
        for entry in client.list_logged_model_artifacts(variant.model_id, path):
            if entry.is_dir:
                fetch(entry.path)
            elif Path(entry.path).name in TOKENIZER_FILES:
                mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{entry.path}", dst_path=folder)

    with TemporaryDirectory(prefix="phi3-") as folder, suppress_output():
        # The whole of "artifacts": earlier versions gave the folder inside it another name.
        fetch(variant.mode.weights_folder.partition("/")[0])
        yield ChatTokenizer(folder)


def control_tokens(variant: Variant) -> list[str]:
    """Return the control tokens of a variant's own checkpoint."""
    with tokenizer_of(variant) as tokenizer:
        return list(tokenizer.control_tokens)


def _control_token_fault(tokenizer: ChatTokenizer, row: Row) -> str | None:
    for number, (role, content) in enumerate(row.messages):
        if token := tokenizer.control_token_in(content, role == "assistant"):
            return f"messages[{number}].content holds the control token {token}."
    return None


def _check_roles(check: ContextCheck, tokenizer: ChatTokenizer, rows: Sequence[Row]) -> None:
    """Note the rows whose conversation the chat template refuses, or of which it leaves out a message."""
    faults: dict[tuple[str, ...], str | None] = {}
    for index, row in enumerate(rows):
        roles = tuple(role for role, _ in row.messages)
        if roles not in faults:
            faults[roles] = _role_fault(tokenizer, roles)
        if (fault := faults[roles]) is not None:
            check.unaskable[index] = fault


def _role_fault(tokenizer: ChatTokenizer, roles: tuple[str, ...]) -> str | None:
    try:
        tokenizer.render([{"role": role, "content": "a"} for role in roles])
    except TemplateRefusal as refusal:
        return f"the chat template refuses its conversation: {refusal}"
    number = tokenizer.template.unrendered(roles)
    if number is None:
        return None
    return f"the chat template leaves out messages[{number}], whose role is {roles[number]!r}"


def _check_lengths(
    check: ContextCheck, tokenizer: ChatTokenizer, variant_name: str, rows: Sequence[Row], reserve: int
) -> None:
    """Note the rows whose prompts are too long. Only rows that might be are tokenized."""
    context = tokenizer.context_length
    # What the template adds once: prompting, the tokens before the answer.
    around = len(tokenizer.encode_chat([{"role": "user", "content": "a"}]))

    def may_be_too_long(row: Row) -> bool:
        # No tokenizer makes more tokens than bytes.
        most = around + sum(len(content.encode()) + AROUND_A_MESSAGE for _, content in row.messages)
        return most + reserve > context

    fine = [index for index in range(len(rows)) if index not in check.control_tokens and index not in check.unaskable]
    long = [index for index in fine if may_be_too_long(rows[index])]
    lengths = tokenizer.count_tokens(tokenizer.render(rows[index].conversation) for index in long)
    for index, length in zip(long, lengths, strict=True):
        if length + reserve > context:
            check.too_long[index] = f"its prompt has {length} tokens, the context of {variant_name} {context}."


def _join_turns(check: ContextCheck, tokenizer: ChatTokenizer, variant: Variant, rows: Sequence[Row]) -> None:
    """Render each row of several turns as one prompt.

    Our wrappers take a prompt in the whole chat format. MLflow's flavour puts its prompt template around every prompt.
    """
    before, after = around_user_message(tokenizer)
    for index, row in enumerate(rows):
        if row.is_plain or index in check.unaskable:
            continue
        rendered = tokenizer.render(row.conversation)
        if variant.mode.takes_whole_prompts:
            check.prompts[index] = rendered
        elif rendered.startswith(before) and rendered.endswith(after):
            check.prompts[index] = rendered[len(before) : len(rendered) - len(after)]
        else:
            check.unaskable[index] = f"its system message does not fit the prompt template of mode={variant.mode.name}"
