"""The contract suite: what a chat or prompt model promises by its signature, checked through its pyfunc interface.

Each row of contract_suite.yaml sends a request and holds the reply against an expectation. Users add a check by adding
a row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from steps.digests import digest, digest_file
from steps.evaluation.asking import Asker
from steps.interfaces.interface import Question, Reply
from steps.modes.mode import Mode

TABLE = Path(__file__).with_suffix(".yaml")
QUESTION = "What is the capital of Spain?"
MAX_TOKENS = 12
# Stands in a text of the table for a control token of the checkpoint.
CONTROL_TOKEN = "{control_token}"
# For a model whose checkpoint is not at hand.
PHI3_CONTROL_TOKENS = ("<|end|>",)
EXPECTATIONS = {
    *("refused", "same_as", "choices", "tokens", "words", "finish_reason", "without", "object"),
    *("replies", "answers_of", "closest_to", "last_tokens"),
}


@dataclass(frozen=True)
class Result:
    """The result of one check; `fault` is None if it passed."""

    name: str
    fault: str | None


def digest_of(interface: str) -> str:
    """Return a digest of the checks of an interface, and of the code that runs them."""
    return digest([checks(interface), digest_file(Path(__file__))])[:16]


def checks(interface: str) -> list[dict[str, Any]]:
    """Return the rows of the table that apply to an interface."""
    rows = _parse(TABLE.read_text(encoding="utf-8"))
    return [row for row in rows if row.get("only", interface) == interface]


@lru_cache(maxsize=4)
def _parse(table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load(table)
    for row in rows:
        if unknown := set(row.get("expect", {})) - EXPECTATIONS:
            raise ValueError(f"{TABLE.name}: '{row['name']}' expects unknown {', '.join(unknown)}")
    return rows


def core_checks(interface: str, mode: Mode, precision: str) -> list[dict[str, Any]]:
    """Return the few checks that decide whether a model may be served, as far as its mode is known to pass them."""
    wanted = set(mode.core_checks)
    if precision in mode.inexact_precisions:
        wanted.discard("exact")
    return [row for row in checks(interface) if row.get("core") in wanted]


def run_checks(
    asker: Asker, rows: list[dict[str, Any]], control_tokens: Sequence[str] = PHI3_CONTROL_TOKENS
) -> list[Result]:
    """Run checks in the order of the table; later ones may refer to the replies of earlier ones.

    Args:
        asker: Asks the model.
        rows: The checks.
        control_tokens: Those of the variant's own checkpoint. A check whose text has one is run with each of them.
    """
    replies: dict[str, list[Reply]] = {}
    results = []
    for check in rows:
        faults = (_fault(asker, form, replies) for form in _forms(check, control_tokens))
        results.append(Result(check["name"], next((fault for fault in faults if fault), None)))
    return results


def _forms(check: dict[str, Any], control_tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Return a check once for each control token that its text must be tried with."""
    text = check.get("text")
    if not isinstance(text, str) or CONTROL_TOKEN not in text:
        return [check]
    return [check | {"text": text.replace(CONTROL_TOKEN, token)} for token in control_tokens]


def _fault(asker: Asker, check: dict[str, Any], replies: dict[str, list[Reply]]) -> str | None:
    """Run one check and return its fault; `replies` has those of earlier checks, and gets this one's."""
    try:
        reply = _ask(asker, check)
    except Exception as error:  # whatever the model raises is what the check is about
        return _refusal_fault(error, check)
    replies[check["name"]] = reply
    return _reply_fault(reply, check.get("expect", {}), replies)


def _ask(asker: Asker, check: dict[str, Any]) -> list[Reply]:
    request = dict(check.get("request", {}))
    text = check.get("text", QUESTION)
    questions = [_question(row, text) for row in request.pop("rows", [request])]
    if check.get("call") == "predict_stream":
        return [Reply(["".join(asker.stream(questions[0]))])]
    return asker.send(questions)


def _question(fields: dict[str, Any], text: Any) -> Question:
    """Return the question of a row; fields of the row other than its text are settings."""
    settings = {"max_tokens": MAX_TOKENS} | fields
    text = settings.pop("text", text)
    return Question([{"role": "user", "content": text}], text, settings)


def _refusal_fault(error: Exception, check: dict[str, Any]) -> str | None:
    """Return what is wrong with an error as the reply to a check."""
    from mlflow.exceptions import MlflowException

    message = str(error)
    named = check.get("expect", {}).get("refused")
    if named is None:
        return f"{type(error).__name__}: {message[:120]}"
    if not isinstance(error, MlflowException) or error.get_http_status_code() != 400:  # type: ignore[no-untyped-call]
        return f"refused with {type(error).__name__}, which is not an HTTP 400"
    if QUESTION in message:
        return "the refusal repeats the prompt"
    whole_words = rf"(?<!\w){re.escape(named)}(?!\w)"
    return None if re.search(whole_words, message, re.IGNORECASE) else f"the refusal does not name {named}"


def _reply_fault(replies: list[Reply], expect: dict[str, Any], earlier: dict[str, list[Reply]]) -> str | None:
    """Return the first way in which replies are not as expected."""
    if "refused" in expect:
        return "answered instead of refused"
    first = replies[0]
    if expect.get("object") and not first.is_object:
        return "the reply is a list, not an object"
    if len(replies) != expect.get("replies", 1):
        return f"{len(replies)} replies instead of {expect.get('replies', 1)}"
    if len(first.texts) != expect.get("choices", 1):
        return f"{len(first.texts)} choices instead of {expect.get('choices', 1)}"
    if "without" in expect and expect["without"] in first.texts[0]:
        return f"the answer holds {expect['without']!r}"
    if "words" in expect and len(first.texts[0].split()) > expect["words"]:
        return f"the answer has {len(first.texts[0].split())} words instead of {expect['words']}"
    return _comparison_fault(replies, expect, earlier) or _count_fault(replies, expect)


def _comparison_fault(replies: list[Reply], expect: dict[str, Any], earlier: dict[str, list[Reply]]) -> str | None:
    """Return how answers differ from those of earlier checks."""
    same, rows = [expect[key] for key in ("same_as",) if key in expect], []
    for key in ("answers_of", "closest_to"):
        rows += expect.get(key, [])
    if missing := [name for name in [*same, *rows] if name not in earlier]:
        return f"'{missing[0]}' was not answered, so there is nothing to compare"
    if same and earlier[same[0]][0].texts != replies[0].texts:
        return f"the answer differs from that of '{same[0]}'"
    texts = [reply.texts[0] for reply in replies]
    references = [earlier[name][0].texts[0] for name in rows]
    if "answers_of" in expect and texts != references:
        return "the rows' answers differ from those one by one"
    if "closest_to" in expect and not _are_closest(texts, references):
        return "a row has the answer of another row"
    return None


def _are_closest(texts: list[str], references: list[str]) -> bool:
    """Compare beginnings, since in bf16 a batch can change the end of an answer.

    Return True if each text shares at least as long a prefix with its own reference answer as with any other, and at
    least one shares a longer one.
    """
    if texts == references:
        return True
    shared = [[_shared_prefix(text, reference) for reference in references] for text in texts]
    if any(row[place] == 0 or row[place] < max(row) for place, row in enumerate(shared)):
        return False
    return len(set(references)) == 1 or any(row[place] > min(row) for place, row in enumerate(shared))


def _shared_prefix(one: str, other: str) -> int:
    """Return how many characters two texts share from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _count_fault(replies: list[Reply], expect: dict[str, Any]) -> str | None:
    """Check tokens and finish reasons, if the interface reports them."""
    if not replies[0].finish_reasons:
        return None
    if any(reply.completion_tokens is None or None in reply.finish_reasons for reply in replies):
        return "the reply has no token counts or no finish reason"
    for text, reason in zip(replies[0].texts, replies[0].finish_reasons, strict=True):
        # A model whose very first token ends its answer has not reached the limit.
        ended_at_once = (text, reason) == ("", "stop")
        if reason != expect.get("finish_reason", reason) and not ended_at_once:
            return f"finish_reason {reason} instead of {expect['finish_reason']}"
    for name, reply in (("tokens", replies[0]), ("last_tokens", replies[-1])):
        if name in expect and (reply.completion_tokens or 0) > expect[name]:
            return f"{reply.completion_tokens} tokens instead of {expect[name]}"
    return None
