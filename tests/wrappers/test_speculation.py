"""Speculation changes no answer, drafts what stood in the text before, and stops where it does not pay."""

import pytest

from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.speculation import FIRST_DRAFT, LONGEST_DRAFT, Speculation, accepted_tokens

TEXTS = [
    "What is the capital of Spain?",
    "Madrid is the capital of Spain. Paris is the capital of France. What is the capital of Spain?",
    "one two three four one two three four one two three four one two",
]


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


def test_no_draft_before_a_plain_pass_nor_beyond_the_last_token_nor_for_a_sampled_sequence(tokenizer):
    again = [1, 2, 3, 4] * 9
    assert Speculation().draft(make(tokenizer, again)) == []
    assert timed().draft(make(tokenizer, again, max_tokens=3)) == [1, 2]
    assert timed().draft(make(tokenizer, again, max_tokens=1)) == []
    for settings in ({"temperature": 1.0}, {"logprobs": 0}, {"presence_penalty": 1.0}, {"logit_bias": ((5, 1.0),)}):
        assert timed().draft(make(tokenizer, again, **settings)) == []


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


@pytest.fixture(params=["torch_scheduler", "packed_scheduler", "onnx_scheduler"])
def scheduler(request):
    return request.getfixturevalue(request.param)


class Silent(Speculation):
    """Draft nothing."""

    def draft(self, sequence):
        return []


class Wrong(Speculation):
    """Draft at every step, and often wrongly."""

    def draft(self, sequence):
        return [*sequence.prompt[-1:], 7, 8, 9] if sequence.settings.takes_best else []


class Always(Speculation):
    """Draft whenever something speaks for a token."""

    def record(self, drafted, accepted, seconds):
        super().record(drafted, accepted, 0.001)


@pytest.mark.parametrize("kind", [Wrong, Always])
def test_answers_are_the_same_with_and_without(scheduler, tokenizer, monkeypatch, kind):
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    limits = [{}, {"stop": ("the",)}, {"max_tokens": 7}]
    answers = {}
    for speculation in (Silent(), kind()):
        monkeypatch.setattr(scheduler.engine, "_speculation", speculation)
        sequences = [make(tokenizer, text, **limit) for text in TEXTS for limit in limits]
        for sequence in sequences:
            scheduler.run([sequence])
        answers[type(speculation)] = [(row.tokens, row.text, row.finish_reason) for row in sequences]
    assert answers[Silent] == answers[kind]


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
