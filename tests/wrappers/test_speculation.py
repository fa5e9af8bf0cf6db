"""Speculation changes no answer, drafts what stood in the text before, and stops where it does not pay."""

import pytest
import torch

from steps.wrappers.engines import torch_engine
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.speculation import FIRST_DRAFT, LONGEST_DRAFT, Speculation, accepted_tokens
from tests.modes.random_phi3 import saved_as_int8

TEXTS = [
    "What is the capital of Spain?",
    "Madrid is the capital of Spain. Paris is the capital of France. What is the capital of Spain?",
    "one two three four one two three four one two three four one two",
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "n",
        "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    },
}


def make(tokenizer, prompt, max_tokens=40, **settings):
    prompt = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    return Sequence(
        prompt, Settings(**{"temperature": 0.0, "top_p": 1.0, "top_k": 0} | settings, max_tokens=max_tokens), tokenizer
    )


def timed():
    """A speculation that knows what a plain pass takes."""
    speculation = Speculation()
    speculation.record(0, 0, 1.0)
    return speculation


@pytest.mark.parametrize(
    ("prompt", "tokens", "draft"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2], [3], [4, 5, 6, 7]),
        ([1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2], [3], [5, 6, 1, 2]),
        ([1, 2, 3, 1, 2], [3], [1, 2, 3, 1]),
        ([9, 9, 9], [9, 9], [9, 9, 9, 9]),
        ([1, 2, 3, 4, 5], [6], []),
        ([1], [2], []),
        ([], [1, 2, 3, 8, 1, 2, 3], [8, 1, 2, 3]),
    ],
)
def test_a_draft_is_what_followed_the_last_time(tokenizer, prompt, tokens, draft):
    sequence = make(tokenizer, prompt)
    speculation = timed()
    for token in tokens:
        got = speculation.draft(sequence)
        sequence.tokens.append(token)
    got = speculation.draft(sequence)
    assert got == draft
    assert len(got) <= FIRST_DRAFT


@pytest.mark.parametrize(
    ("draft", "best", "accepted"),
    [([], [5], [5]), ([5, 6], [5, 6, 7], [5, 6, 7]), ([5, 6], [4, 6, 7], [4]), ([5, 6], [5, 9, 7], [5, 9])],
)
def test_tokens_are_accepted_up_to_the_first_that_the_engine_would_not_choose(draft, best, accepted):
    assert accepted_tokens(draft, best) == accepted


def test_no_draft_before_a_plain_pass_nor_beyond_the_last_token(tokenizer):
    again = [1, 2, 3, 4] * 9
    assert Speculation().draft(make(tokenizer, again)) == []
    assert timed().draft(make(tokenizer, again, max_tokens=3)) == [1, 2]
    assert timed().draft(make(tokenizer, again, max_tokens=1)) == []


def test_drafts_grow_while_they_are_right(tokenizer):
    sequence, speculation, lengths = make(tokenizer, [1, 2, 3, 4] * 20, max_tokens=400), timed(), []
    for _ in range(4):
        draft = speculation.draft(sequence)
        lengths.append(len(draft))
        speculation.record(len(draft), len(draft), 1.5)
        sequence.tokens += [*draft, draft[-1] % 4 + 1]
    assert lengths == [FIRST_DRAFT, 2 * FIRST_DRAFT, LONGEST_DRAFT, LONGEST_DRAFT]


def test_drafts_that_are_always_wrong_cost_at_most_three_percent(tokenizer):
    sequence, speculation, drafts = make(tokenizer, [1, 2, 3, 4] * 20, max_tokens=4000), timed(), 0
    for _ in range(400):
        drafted = len(speculation.draft(sequence))
        drafts += drafted > 0
        # A pass over a draft takes twice as long.
        speculation.record(drafted, 0, 2.0 if drafted else 1.0)
    assert 0 < drafts <= 0.03 * 400


@pytest.fixture(params=["torch_scheduler", "packed_scheduler", "onnx_scheduler", "openvino_scheduler"])
def scheduler(request):
    return request.getfixturevalue(request.param)


class Silent(Speculation):
    """Draft nothing."""

    def draft(self, sequence):
        return []


class Wrong(Speculation):
    """Draft at every step, and often wrongly."""

    def draft(self, sequence):
        room = sequence.settings.max_tokens - len(sequence.tokens) - 1
        return [*sequence.prompt[-1:], 7, 8, 9][:room]


class Always(Speculation):
    """Draft whenever something speaks for a token."""

    def record(self, drafted, accepted, seconds):
        super().record(drafted, accepted, 0.001)


@pytest.mark.parametrize("kind", [Wrong, Always])
def test_answers_are_the_same_with_and_without(scheduler, tokenizer, monkeypatch, kind):
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    limits = [{"max_tokens": 24}, {"stop": ("the",), "max_tokens": 24}, {"max_tokens": 7}]
    answers = {}
    for speculation in (Silent(), kind()):
        monkeypatch.setattr(scheduler.engine, "_speculation", speculation)
        sequences = [make(tokenizer, text, **limit) for text in TEXTS for limit in limits]
        for sequence in sequences:
            scheduler.run([sequence])
        answers[type(speculation)] = [(row.tokens, row.text, row.finish_reason) for row in sequences]
    assert answers[Silent] == answers[kind]


# What a request may ask for, and whether its tokens may come from drafts: only if each is the best one, come what may.
KINDS = {
    "greedy": ({}, True),
    "a stop string": ({"stop": ["the", "is"]}, True),
    "few tokens": ({"max_tokens": 3}, True),
    "several choices": ({"n": 2}, True),
    "log-probabilities": ({"logprobs": True}, False),
    "alternatives": ({"logprobs": True, "top_logprobs": 3}, False),
    "a presence penalty": ({"presence_penalty": 1.5}, False),
    "a frequency penalty": ({"frequency_penalty": -1.5}, False),
    "a bias": ({"logit_bias": {"30": 4, "31": -4}}, False),
    "sampled with a seed": ({"temperature": 1.0, "seed": 3}, False),
    "sampled from few": ({"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 3}, False),
    "a JSON object": ({"response_format": {"type": "json_object"}}, False),
    "a sampled JSON object": ({"response_format": {"type": "json_object"}, "temperature": 1.0, "seed": 3}, False),
    "a schema": ({"response_format": SCHEMA}, False),
}


@pytest.mark.parametrize(("fields", "is_drafted"), KINDS.values(), ids=KINDS)
def test_every_kind_of_request_has_the_tokens_and_scores_that_it_has_without(
    scheduler, contract, tokenizer, monkeypatch, fields, is_drafted
):
    row = {"messages": [{"role": "user", "content": TEXTS[1]}], "max_tokens": 60} | fields
    drafts, check = [], scheduler.engine._check
    monkeypatch.setattr(scheduler.engine, "_check", lambda *inputs: drafts.append(inputs) or check(*inputs))
    answers = {}
    for speculation in (Silent(), Wrong(), Always()):
        monkeypatch.setattr(scheduler.engine, "_speculation", speculation)
        sequences = contract.requests([row], None)[0].sequences(tokenizer)
        for sequence in sequences:
            scheduler.run([sequence])
        answers[type(speculation)] = [(one.tokens, one.text, one.finish_reason, one.scores) for one in sequences]
    assert answers[Wrong] == answers[Always] == answers[Silent]
    assert bool(drafts) is is_drafted


def test_a_batch_job_has_no_drafts(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(scheduler.engine, "_speculation", Wrong())
    monkeypatch.setattr(scheduler.engine, "_check", None)
    scheduler.submit([row := make(tokenizer, TEXTS[2])], patient=True)
    scheduler.wait([row])
    assert row.error is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_torch_engine_has_drafts_in_fp32_only(checkpoint, tokenizer, tmp_path, monkeypatch, precision):
    """In other precisions an answer may depend on how many tokens a pass has."""
    monkeypatch.setattr(torch_engine, "compute_dtype", lambda precision, *_: DTYPES[precision])
    folder = checkpoint.directory
    if precision == "int8":
        folder = saved_as_int8(folder, tmp_path / "int8")
    engine = torch_engine.TorchEngine(str(folder), precision, 16, "cpu")
    assert engine._may_speculate([make(tokenizer, TEXTS[2])]) is (precision == "fp32")


def test_a_pruned_head_has_no_drafts(int4_scheduler, tokenizer, monkeypatch):
    """It says nothing of the tokens before the last one."""
    monkeypatch.setattr(int4_scheduler.engine, "_speculation", Wrong())
    monkeypatch.setattr(int4_scheduler.engine, "_check", None)
    int4_scheduler.run([row := make(tokenizer, TEXTS[2])])
    assert row.error is None


@pytest.mark.parametrize("kind", [Silent, Always])
def test_an_answer_may_pass_the_size_of_the_cache(onnx_scheduler, tokenizer, monkeypatch, kind):
    """Alone and among others: the last token of a sequence may have no place yet when the cache grows."""
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    monkeypatch.setattr(onnx_scheduler.engine, "_speculation", kind())
    onnx_scheduler.run(together := [make(tokenizer, [5 + row] * (row + 1), max_tokens=150 - row) for row in range(3)])
    for row, sequence in enumerate(together):
        onnx_scheduler.run([alone := make(tokenizer, [5 + row] * (row + 1), max_tokens=150 - row)])
        assert alone.tokens == sequence.tokens
        assert len(alone.tokens) == 150 - row


def test_a_text_that_repeats_itself_needs_fewer_passes(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    passes, step = [], scheduler.engine.step
    monkeypatch.setattr(scheduler.engine, "step", lambda arriving: passes.append(1) or step(arriving))
    monkeypatch.setattr(scheduler.engine, "_speculation", Always())
    scheduler.run([make(tokenizer, TEXTS[0], max_tokens=200)])
    assert len(passes) < 150


def test_only_a_row_that_runs_alone_has_drafts(scheduler, tokenizer, monkeypatch):
    drafted = []
    monkeypatch.setattr(scheduler.engine._speculation, "draft", lambda sequence: drafted.append(sequence) or [])
    first, second = make(tokenizer, TEXTS[0], max_tokens=3), make(tokenizer, TEXTS[1], max_tokens=6)
    scheduler.run([first, second])
    assert set(drafted) <= {second}
    assert all(len(sequence.tokens) for sequence in (first, second))
