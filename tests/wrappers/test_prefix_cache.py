"""What prompts share at their beginning is computed once, and no answer changes by it."""

import numpy as np
import pytest

from steps.wrappers.engines.admission import Pass
from steps.wrappers.engines.prefix_cache import BLOCK, Prefix, PrefixCache
from steps.wrappers.engines.sequence import Sequence, Settings

GREEDY = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=12)


def result_of(passes):
    """Run passes to their end."""
    try:
        while True:
            next(passes)
    except StopIteration as end:
        return end.value


class Recorder:
    """Stands in for an engine: the state of a beginning is its own tokens."""

    def __init__(self, max_tokens):
        self.cache = PrefixCache(max_tokens, 1)
        self.computed = []

    def extend(self, known, tokens):
        assert known is None or known.tokens.tolist() == tokens[: len(known.tokens)].tolist()
        self.computed.append(len(tokens) - (len(known.tokens) if known else 0))
        yield Pass(self.computed[-1])
        return Prefix(tokens, tokens.tolist())

    def lookup(self, *prompts):
        found = result_of(self.cache.lookup(prompts, self.extend))
        prefixes = [entry.prefix for entry in found]
        for prompt, prefix in zip(prompts, prefixes, strict=True):
            assert prefix is None or prefix.state == prompt[: len(prefix.state)]
        self.own = [entry.computed for entry in found]
        return [len(prefix.state) if prefix else 0 for prefix in prefixes]


def words(count, first=0):
    return list(range(first, first + count))


SHARED = words(3 * BLOCK)


@pytest.mark.parametrize(
    ("prompts", "known", "computed"),
    [
        ([SHARED], [0], []),
        ([[*SHARED, 900], [*SHARED, 901]], [48, 48], [48]),
        ([[*SHARED, 900], [*SHARED[:-1], 901]], [32, 32], [32]),
        ([words(BLOCK - 1), [*words(BLOCK - 1), 900]], [0, 0], []),
        ([SHARED, SHARED], [32, 32], [32]),
        ([words(40, 100), words(40, 200)], [0, 0], []),
    ],
    ids=["alone", "shared", "whole blocks", "too short", "the same prompt", "nothing shared"],
)
def test_prompts_that_arrive_together_share_their_beginning(prompts, known, computed):
    recorder = Recorder(1000)
    assert recorder.lookup(*prompts) == known
    assert recorder.computed == computed


def test_a_conversation_that_goes_on_computes_only_what_is_new():
    recorder, turns = Recorder(1000), words(200)
    lengths = [recorder.lookup(turns[:end])[0] for end in (50, 100, 150, 200)]
    assert lengths == [0, 48, 96, 144]
    assert recorder.computed == [48, 48, 48]


def test_what_a_prompt_has_computed_itself_is_told_from_what_was_there():
    recorder, beginning = Recorder(1000), words(50)
    recorder.lookup([*beginning, 1])
    assert (recorder.lookup([*beginning, 2]), recorder.own) == ([48], [48])
    assert (recorder.lookup([*beginning, 3], [*beginning, 4]), recorder.own) == ([48, 48], [0, 0])


def test_a_beginning_whose_computation_is_gone_is_computed_again():
    """As in a forked process: the generator is in the frames of a thread that is not there."""
    recorder, prompts = Recorder(1000), [[*words(50), end] for end in (1, 2)]
    left = recorder.cache.lookup(prompts, recorder.extend)
    next(left)
    recorder.cache.reset()
    assert recorder.lookup(*prompts) == [48, 48]
    left.close()


def test_the_least_recently_used_goes_first_and_the_bound_holds():
    recorder = Recorder(5 * BLOCK)
    prompts = {first: [[*words(2 * BLOCK, first), end] for end in (1, 2)] for first in (1000, 2000, 3000)}
    recorder.lookup(*prompts[1000])
    recorder.lookup(*prompts[2000])
    recorder.lookup(prompts[1000][0])
    recorder.lookup(*prompts[3000])
    assert recorder.cache.kept_tokens == 4 * BLOCK
    recorder.computed.clear()
    assert recorder.lookup(prompts[1000][0], prompts[3000][0]) == [32, 32]
    assert recorder.computed == []
    assert recorder.lookup(prompts[2000][0]) == [32]
    assert recorder.computed == [32]


def test_a_beginning_larger_than_the_bound_is_kept_in_part():
    recorder = Recorder(2 * BLOCK + 3)
    assert recorder.lookup([*SHARED, 1], [*SHARED, 2]) == [32, 32]


def test_a_bound_of_nothing_keeps_nothing():
    recorder = Recorder(0)
    assert recorder.lookup([*SHARED, 1], [*SHARED, 2]) == [0, 0]


def test_random_prompts_get_a_beginning_of_their_own_within_the_bound():
    generator, recorder = np.random.default_rng(0), Recorder(10 * BLOCK)
    for _ in range(300):
        count = generator.integers(1, 6)
        recorder.lookup(*(generator.integers(0, 2, generator.integers(1, 60)).tolist() for _ in range(count)))
        assert recorder.cache.kept_tokens <= 10 * BLOCK


@pytest.fixture(
    params=["torch_scheduler", "packed_scheduler", "onnx_scheduler", "int4_scheduler", "openvino_scheduler"]
)
def scheduler(request):
    return request.getfixturevalue(request.param)


def run(scheduler, tokenizer, prompts, alone=False):
    """Return the sequences that complete the prompts."""
    sequences = [Sequence(tokenizer.encode(prompt), GREEDY, tokenizer) for prompt in prompts]
    for batch in [[sequence] for sequence in sequences] if alone else [sequences]:
        scheduler.run(batch)
    return sequences


def tokens_of(sequences):
    return [sequence.tokens for sequence in sequences]


def reused(sequences):
    return sum(sequence.reused for sequence in sequences)


FEW_SHOT = (
    "What is the capital of France? Paris. What is the capital of Italy? Rome. What is the opposite of wet? dry. "
)
QUESTIONS = [
    "What is the capital of Spain?",
    "What is the opposite of hot, in one word, please?",
    "Name the capital of Japan.",
    "Which city is the capital of Germany? Think about it for as long as you like, and then answer in a word.",
    "7",
]


def test_answers_are_the_same_with_and_without(scheduler, tokenizer, monkeypatch):
    prompts = [*(FEW_SHOT + question for question in QUESTIONS), *QUESTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine.prefixes, "_max_tokens", 0)
        without = run(scheduler, tokenizer, prompts, alone=True)
    together, alone = run(scheduler, tokenizer, prompts), run(scheduler, tokenizer, prompts, alone=True)
    assert tokens_of(together) == tokens_of(alone) == tokens_of(without)
    assert reused(without) == 0
    # One of them has computed what they share.
    assert reused(together) > (len(QUESTIONS) - 1) * BLOCK
    # The prompts themselves are known by now.
    assert reused(alone) >= reused(together)


def test_rows_that_join_a_running_batch_reuse_a_beginning(scheduler, tokenizer):
    prompts = [FEW_SHOT + question for question in QUESTIONS]
    expected = tokens_of(run(scheduler, tokenizer, prompts, alone=True))
    sequences = [Sequence(tokenizer.encode(prompt), GREEDY, tokenizer) for prompt in prompts]
    for sequence in sequences:
        scheduler.submit([sequence])
    scheduler.wait(sequences)
    assert tokens_of(sequences) == expected
    assert reused(sequences) >= (len(prompts) - 1) * BLOCK
