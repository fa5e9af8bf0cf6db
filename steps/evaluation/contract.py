"""Run the contract suite (contract.yaml) against a loaded model, through its pyfunc interface.

A check asks one request and holds the reply against an expectation; a user adds one by a row of the table.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_suffix(".yaml")
QUESTION = "What is the capital of Spain?"
MAX_TOKENS = 12
EXPECTATIONS = {
    *("refused", "same_as", "choices", "tokens", "words", "finish_reason", "without", "object"),
    *("replies", "answers_of", "closest_to", "last_tokens"),
}


@dataclass(frozen=True)
class Reply:
    """One row's reply: its texts, and for the chat interface its finish reasons and tokens."""

    texts: list[str]
    finish_reasons: list[str]
    tokens: int | None
    whole: bool = True  # the reply as an object, not in a list


@dataclass(frozen=True)
class Result:
    """One check: `fault` says how it failed, None where it passed."""

    name: str
    fault: str | None


@cache
def checks(interface: str) -> list[dict[str, Any]]:
    """The rows of the table that are for an interface."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    for row in rows:
        if strange := set(row.get("expect", {})) - EXPECTATIONS:
            raise ValueError(f"contract.yaml: '{row['name']}' expects unknown {', '.join(strange)}")
    return [row for row in rows if row.get("only", interface) == interface]


def core(interface: str, mode: str, precision: str) -> list[dict[str, Any]]:
    """The few checks that tell a model that must not be served; of the stock flavour only those it is known to keep.

    In bf16 a word may come out otherwise beside other rows, where the processor computes in it.
    """
    wanted = ("all",) if mode == "transformers" else ("all", "wrappers", *(() if precision == "bf16" else ("exact",)))
    return [row for row in checks(interface) if row.get("core") in wanted]


def run(model: Any, interface: str, rows: list[dict[str, Any]] | None = None) -> list[Result]:
    """Ask every check of the suite, or the given rows of it, in the order of the table."""
    answered: dict[str, list[Reply]] = {}
    results = []
    for check in checks(interface) if rows is None else rows:
        try:
            replies = _ask(model, interface, check)
        except Exception as error:  # whatever the model raises is what the check is about
            fault = _refusal_fault(error, check)
        else:
            answered[check["name"]] = replies
            fault = _reply_fault(replies, check.get("expect", {}), answered)
        results.append(Result(check["name"], fault))
    return results


def _ask(model: Any, interface: str, check: dict[str, Any]) -> list[Reply]:
    request = dict(check.get("request", {}))
    rows = request.pop("rows", [request])
    text = check.get("text", QUESTION)
    if check.get("call") == "predict_stream":
        return [_ask_stream(model, interface, rows[0], text)]
    if interface == "prompt":
        return _ask_prompt(model, rows, text)
    requests = [_chat_request(row, text) for row in rows]
    raw = model.predict(requests[0] if len(requests) == 1 else _frame(requests))
    whole = isinstance(raw, dict)
    return [_chat_reply(reply, whole) for reply in ([raw] if whole else raw)]


def _chat_request(row: dict[str, Any], text: Any) -> dict[str, Any]:
    fields = {"messages": [{"role": "user", "content": row.get("text", text)}], "max_tokens": MAX_TOKENS} | row
    fields.pop("text", None)
    if "seed" in fields:
        fields["custom_inputs"] = {"seed": fields.pop("seed")}
    return fields


def _frame(requests: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(requests)


def _chat_reply(reply: dict[str, Any], whole: bool) -> Reply:
    usage = reply["usage"]
    if usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
        raise ValueError("the token counts of usage do not add up")
    return Reply(
        [choice["message"]["content"] for choice in reply["choices"]],
        [choice["finish_reason"] for choice in reply["choices"]],
        usage["completion_tokens"],
        whole,
    )


def _ask_prompt(model: Any, rows: list[dict[str, Any]], text: Any) -> list[Reply]:
    prompts = [{"prompt": row.get("text", text)} for row in rows]
    params = _params(rows[0])
    raw = model.predict(prompts[0] if len(prompts) == 1 else _frame(prompts), params=params)
    if len(prompts) > 1:
        return [Reply([text], [], None) for text in raw]
    return [Reply(raw if isinstance(raw, list) else [raw], [], None)]


def _params(row: dict[str, Any]) -> dict[str, Any]:
    return {"max_tokens": MAX_TOKENS} | {key: value for key, value in row.items() if key != "text"}


def _ask_stream(model: Any, interface: str, row: dict[str, Any], text: Any) -> Reply:
    """The reply that the pieces of a stream make."""
    if interface == "prompt":
        pieces = model.predict_stream({"prompt": row.get("text", text)}, params=_params(row))
        return Reply(["".join(pieces)], [], None)
    choices = [chunk["choices"][0] for chunk in model.predict_stream(_chat_request(row, text))]
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    return Reply([said], [choice["finish_reason"] for choice in choices if choice["finish_reason"]], None)


def _refusal_fault(error: Exception, check: dict[str, Any]) -> str | None:
    """What is wrong with an error as the reply to a check."""
    from mlflow.exceptions import MlflowException

    said = str(error)
    named = check.get("expect", {}).get("refused")
    if named is None:
        return f"{type(error).__name__}: {said[:120]}"
    if not isinstance(error, MlflowException) or error.get_http_status_code() != 400:
        return f"refused with {type(error).__name__}, which is no HTTP 400"
    if QUESTION in said:
        return "the refusal repeats the prompt"
    whole_words = rf"(?<!\w){re.escape(named)}(?!\w)"
    return None if re.search(whole_words, said, re.IGNORECASE) else f"the refusal does not name {named}"


def _reply_fault(replies: list[Reply], expect: dict[str, Any], answered: dict[str, list[Reply]]) -> str | None:
    """The first thing in which an answer is not as expected."""
    if "refused" in expect:
        return "answered instead of refused"
    first = replies[0]
    if expect.get("object") and not first.whole:
        return "the reply is a list, not an object"
    if len(replies) != expect.get("replies", 1):
        return f"{len(replies)} replies instead of {expect.get('replies', 1)}"
    if len(first.texts) != expect.get("choices", 1):
        return f"{len(first.texts)} choices instead of {expect.get('choices', 1)}"
    if "without" in expect and expect["without"] in first.texts[0]:
        return f"the answer holds {expect['without']!r}"
    if "words" in expect and len(first.texts[0].split()) > expect["words"]:
        return f"the answer has {len(first.texts[0].split())} words instead of {expect['words']}"
    return _comparison_fault(replies, expect, answered) or _count_fault(replies, expect)


def _comparison_fault(replies: list[Reply], expect: dict[str, Any], answered: dict[str, list[Reply]]) -> str | None:
    """In which way answers are not those of other checks."""
    names = [name for key in ("same_as", "answers_of", "closest_to") for name in _listed(expect.get(key, []))]
    if missing := [name for name in names if name not in answered]:
        return f"'{missing[0]}' was not answered, so there is nothing to compare"
    if "same_as" in expect and answered[expect["same_as"]][0].texts != replies[0].texts:
        return f"the answer differs from that of '{expect['same_as']}'"
    texts = [reply.texts[0] for reply in replies]
    own = [answered[name][0].texts[0] for name in expect.get("answers_of", expect.get("closest_to", []))]
    if "answers_of" in expect and texts != own:
        return "the rows' answers differ from those one by one"
    if "closest_to" in expect and not _are_closest(texts, own):
        return "a row has the answer of another row"
    return None


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def _are_closest(texts: list[str], own: list[str]) -> bool:
    """Whether every text begins like its own answer as far as like any other at least, and one of them farther."""
    if texts == own:
        return True
    shared = [[_shared(text, answer) for answer in own] for text in texts]
    if any(row[place] == 0 or row[place] < max(row) for place, row in enumerate(shared)):
        return False
    return len(set(own)) == 1 or any(row[place] > min(row) for place, row in enumerate(shared))


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with together."""
    places = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(places, min(len(one), len(other)))


def _count_fault(replies: list[Reply], expect: dict[str, Any]) -> str | None:
    """What the chat interface alone can tell: tokens and finish reasons."""
    if replies[0].tokens is None:
        return None
    if "finish_reason" in expect and set(replies[0].finish_reasons) != {expect["finish_reason"]}:
        return f"finish_reason {replies[0].finish_reasons[0]} instead of {expect['finish_reason']}"
    for name, reply in (("tokens", replies[0]), ("last_tokens", replies[-1])):
        if name in expect and reply.tokens > expect[name]:
            return f"{reply.tokens} tokens instead of {expect[name]}"
    return None
