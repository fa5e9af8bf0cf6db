"""Long prompts are computed in pieces among the rows that clients wait for, and no answer changes by it."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from steps.wrappers.engines import admission as admission_module
from steps.wrappers.engines.admission import Admission, Pass
from steps.wrappers.engines.prefix_cache import PrefixCache
from steps.wrappers.engines.sequence import Sequence, Settings

LONGEST, FIRST, SHORTEST, SECONDS = 64, 32, 16, 0.1
QUESTIONS = ["What is the capital of Spain?", "What is the opposite of hot?", "Name the capital of Japan."]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Shorter pieces than those of real prompts, so that short prompts have several."""
    lengths = {"FIRST_PIECE": FIRST, "SHORTEST_PIECE": SHORTEST, "LONG_COPY": SHORTEST}
    for name, value in (lengths | {"GAP_SECONDS": SECONDS, "LEAST_SECONDS": SECONDS / 4}).items():
        monkeypatch.setattr(admission_module, name, value)


class Clock:
    """Stands in for the time: each token of a pass takes a while."""

    def __init__(self, seconds_per_token):
        self.now, self.seconds_per_token = 0.0, seconds_per_token

    def perf_counter(self):
        return self.now


class Prompts:
    """Stands in for an engine: it records the passes as (name, tokens)."""

    def __init__(self, monkeypatch, seconds_per_token=0.01):
        self.clock, self.passes = Clock(seconds_per_token), []
        monkeypatch.setattr(admission_module, "time", self.clock)
        self.admission = Admission(self.enter, LONGEST)

    def enter(self, sequences):
        for sequence in sequences:
            for start, end in self.admission.columns(sequence.length, 1):
                self.passes.append((sequence.name, end - start))
                self.clock.now += (end - start) * self.clock.seconds_per_token
                yield Pass(end - start, ((sequence, 7),) if end == sequence.length else ())

    def step(self, arriving=(), awaited=True):
        return self.admission.step(list(arriving), [SimpleNamespace(is_awaited=awaited)])


def prompt(name, length):
    return SimpleNamespace(name=name, length=length, is_over=False)


def test_passes_and_the_tokens_of_awaited_rows_take_turns(monkeypatch):
    prompts, new = Prompts(monkeypatch), prompt("long", 40)
    turns = [prompts.step([new]), *(prompts.step() for _ in range(6))]
    assert turns == [[], None, [(new, 7)], None, None, None, None]
    # The first one took three times as long as it should.
    assert prompts.passes == [("long", 32), ("long", 8)]


@pytest.mark.parametrize(
    ("seconds_per_token", "sizes"),
    [(1.0, [32, 16, 16, 16]), (0.003, [32, 32, 32, 32]), (0.0015, [32, 32, 64, 64]), (1e-5, [32, 64, 64, 64])],
)
def test_pieces_fit_the_time_that_rows_may_wait(monkeypatch, seconds_per_token, sizes):
    prompts = Prompts(monkeypatch, seconds_per_token)
    prompts.step([prompt("long", 1000)])
    while len(prompts.passes) < 4:
        prompts.step()
    assert [tokens for _, tokens in prompts.passes][:4] == sizes


@pytest.mark.parametrize(("turn", "sizes"), [(0.0, [64, 64]), (0.05, [32, 32]), (0.5, [16, 16])])
def test_passes_leave_time_for_the_tokens_of_the_rows(monkeypatch, turn, sizes):
    """A client waits for both. Passes have at least a quarter of the time, however long the rows take."""
    prompts = Prompts(monkeypatch, seconds_per_token=0.00125)
    prompts.step([prompt("long", 1000)])
    while len(prompts.passes) < 6:
        if prompts.step() is None:
            prompts.clock.now += turn
    assert [tokens for _, tokens in prompts.passes][-2:] == sizes


def test_a_machine_that_becomes_slow_gets_short_pieces_again(monkeypatch):
    prompts = Prompts(monkeypatch, seconds_per_token=1e-5)
    prompts.step([prompt("fast", 128)])
    prompts.clock.seconds_per_token = 0.01
    for _ in range(6):
        prompts.step([prompt("slow", 40)])
    assert [tokens for name, tokens in prompts.passes if name == "slow"][:2] == [40, 16]


def test_a_short_prompt_does_not_wait_for_a_long_one_that_came_before(monkeypatch):
    prompts, short = Prompts(monkeypatch), prompt("short", 5)
    prompts.step([prompt("long", 1000)])
    assert prompts.step() is None
    turns = [prompts.step([short]), prompts.step(), prompts.step()]
    assert [(short, 7)] in turns
    assert [name for name, _ in prompts.passes] == ["long", "long", "short"]


@pytest.mark.parametrize(("awaited", "turns"), [(True, [None, [], None, []]), (False, [[], [], [], []])])
def test_copying_what_a_long_prompt_has_is_a_turn_for_those_who_wait(monkeypatch, awaited, turns):
    prompts = Prompts(monkeypatch)

    def copy(_):
        while True:
            yield Pass(0, ends_turn=True)
            prompts.clock.now += SECONDS
            yield Pass(0, copied=1)

    prompts.admission = Admission(copy, LONGEST)
    assert prompts.step([prompt("copied", 100)], awaited) == []
    assert [prompts.step(awaited=awaited) for _ in turns] == turns
    assert [prompts.admission.divides(tokens) for tokens in (SHORTEST - 1, SHORTEST)] == [False, awaited]


def test_what_comes_after_the_end_of_a_turn_waits_though_there_is_time(monkeypatch):
    prompts, done = Prompts(monkeypatch), []

    def enter(_):
        for ends_turn in (False, True, False, True):
            done.append(ends_turn)
            prompts.clock.now += SECONDS / 100
            yield Pass(1, ends_turn=ends_turn)

    prompts.admission = Admission(enter, LONGEST)
    assert [prompts.step([prompt("quick", 4)]), len(done)] == [[], 2]
    assert [prompts.step(), prompts.step(), len(done)] == [None, [], 4]


def test_rows_of_a_batch_job_wait_for_all_prompts_in_passes_of_full_length(monkeypatch):
    prompts, new = Prompts(monkeypatch, seconds_per_token=1.0), [prompt("first", 100), prompt("second", 70)]
    tokens = prompts.step(new, awaited=False)
    while (more := prompts.step(awaited=False)) is not None:
        tokens += more
    assert tokens == [(sequence, 7) for sequence in new]
    assert prompts.passes == [("first", 64), ("first", 36), ("second", 64), ("second", 6)]


def test_cancelled_prompts_and_those_before_a_reset_are_not_computed_on(monkeypatch):
    prompts, cancelled = Prompts(monkeypatch), prompt("cancelled", 1000)
    prompts.step([cancelled])
    cancelled.is_over = True
    assert [prompts.step() for _ in range(3)] == [None, None, None]
    prompts.step([prompt("forgotten", 1000)])
    prompts.admission.clear()
    assert prompts.step() is None
    assert [name for name, _ in prompts.passes] == ["cancelled", "forgotten"]


# Those whose rows are copied into the batch.
COPYING = ["torch_scheduler", "packed_scheduler", "onnx_scheduler", "int4_scheduler"]


@pytest.fixture(params=[*COPYING, "openvino_scheduler"])
def scheduler(request, monkeypatch):
    """An engine so slow, by its clock, that all pieces are short, and that keeps no beginnings."""
    scheduler = request.getfixturevalue(request.param)
    for name in ("GAP_SECONDS", "LEAST_SECONDS"):
        monkeypatch.setattr(admission_module, name, 1e-9)
    monkeypatch.setattr(scheduler.engine.admission, "_budget", 1e-9)
    monkeypatch.setattr(scheduler.engine.admission, "_piece", SHORTEST)
    monkeypatch.setattr(scheduler.engine, "_prefixes", PrefixCache(0, 1))
    return scheduler


def make(tokenizer, text, max_tokens, **settings):
    return Sequence(tokenizer.encode(text), Settings(0.0, 1.0, 0, max_tokens, **settings), tokenizer)


def arrive_late(scheduler, monkeypatch, running, late):
    """Run sequences, and others that arrive at the fourth step; return the lengths of `running` after each step."""
    step, lengths = scheduler.engine.step, []

    def recorded(arriving):
        lengths.append([len(sequence.tokens) for sequence in running])
        if len(lengths) == 3:
            scheduler.submit(late)
        return step(arriving)

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine, "step", recorded)
        scheduler.submit(running)
        scheduler.wait([*running, *late])
    return lengths


def test_long_prompts_do_not_stop_the_running_rows_and_answer_the_same(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    long = ["please " * 90 + QUESTIONS[0], "tell me " * 50 + QUESTIONS[1], QUESTIONS[2]]
    alone = [make(tokenizer, text, 8) for text in long] + [make(tokenizer, text, 48) for text in QUESTIONS]
    for sequence in alone:
        scheduler.run([sequence])
    late, running = [make(tokenizer, text, 8) for text in long], [make(tokenizer, text, 48) for text in QUESTIONS]
    lengths = arrive_late(scheduler, monkeypatch, running, late)
    assert [sequence.tokens for sequence in [*late, *running]] == [sequence.tokens for sequence in alone]
    # While all of them run.
    lengths = [row for row in lengths if min(row) > 0 and max(row) < 48]
    waits = [before == after for before, after in pairwise(lengths)]
    assert sum(waits) >= (len(late[0].prompt) + len(late[1].prompt)) / (2 * SHORTEST)
    assert not any(first and second for first, second in pairwise(waits))


@pytest.mark.parametrize("scheduler", COPYING, indirect=True)
@pytest.mark.parametrize("kept", [0, 2**20])
def test_a_long_prompt_is_copied_in_turns_without_a_pass(scheduler, tokenizer, monkeypatch, kept):
    """One turn copies the beginning that is known, and another one the complete row."""
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    engine, text = scheduler.engine, "please " * 90
    monkeypatch.setattr(engine, "_prefixes", PrefixCache(kept, 1))
    for question in QUESTIONS[:2]:
        scheduler.run([make(tokenizer, text + question, 1)])
    name = "forward" if hasattr(engine, "forward") else "_forward"
    forward, step, passes, turns = getattr(engine, name), engine.step, [], []
    monkeypatch.setattr(engine, name, lambda *arguments: passes.append(1) or forward(*arguments))

    def recorded(arriving):
        before, chosen = len(passes), step(arriving)
        turns.append((len(passes) - before, late in [sequence for sequence, _ in chosen]))
        return chosen

    running, late = make(tokenizer, QUESTIONS[0], 60), make(tokenizer, text + QUESTIONS[2], 4)
    monkeypatch.setattr(engine, "step", recorded)
    arrive_late(scheduler, monkeypatch, [running], [late])
    assert (late.reused > SHORTEST) == bool(kept)
    assert turns[[chosen for _, chosen in turns].index(True)] == (0, True)
    # The ONNX engine makes room for the row in one more turn.
    assert [did for did, _ in turns].count(0) == (2 if kept else 1) + (name == "forward")


def test_a_prompt_that_is_cancelled_between_two_pieces_leaves_the_others(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    running, cancelled = make(tokenizer, QUESTIONS[0], 40), make(tokenizer, "please " * 150, 8)
    (alone := make(tokenizer, QUESTIONS[0], 40)) and scheduler.run([alone])
    step, steps = scheduler.engine.step, []

    def cancelling(arriving):
        steps.append(len(running.tokens))
        if len(steps) == 4:
            scheduler.submit([cancelled])
        if len(steps) == 10:
            cancelled.cancel()
        return step(arriving)

    monkeypatch.setattr(scheduler.engine, "step", cancelling)
    scheduler.run([running])
    assert cancelled.done.wait(30)
    assert (cancelled.error.code, cancelled.tokens) == ("cancelled", [])
    assert running.tokens == alone.tokens
    scheduler.run([after := make(tokenizer, QUESTIONS[0], 40)])
    assert after.tokens == alone.tokens


def test_the_scores_of_a_prompt_in_pieces_are_those_of_the_prompt_alone(scheduler, tokenizer, monkeypatch):
    scored = {"logprobs": 0, "echo": True}
    text = "please tell me " * 20 + QUESTIONS[0]
    scheduler.run([alone := make(tokenizer, text, 4, **scored)])
    running, late = [make(tokenizer, QUESTIONS[1], 30)], make(tokenizer, text, 4, **scored)
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())
    arrive_late(scheduler, monkeypatch, running, [late])
    assert len(late.prompt_scores) == len(late.prompt) - 1
    ours, theirs = ([score.logprob for score in sequence.prompt_scores] for sequence in (late, alone))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_rows_much_longer_than_the_others_are_a_batch_of_their_own(torch_scheduler, tokenizer, monkeypatch):
    engine = torch_scheduler.engine
    texts = [*QUESTIONS, "please " * 150 + QUESTIONS[0], "tell me " * 80 + QUESTIONS[1]]
    limits = [10, 40, 30, 20, 40]
    torch_scheduler.run(together := [make(tokenizer, *each) for each in zip(texts, limits, strict=True)])
    monkeypatch.setattr(engine, "_most_padding", 100)
    rows, step = [], engine.step

    def recorded(arriving):
        chosen = step(arriving)
        rows.append([len(batch.rows) for batch in engine._batches])
        return chosen

    monkeypatch.setattr(engine, "step", recorded)
    torch_scheduler.run(apart := [make(tokenizer, *each) for each in zip(texts, limits, strict=True)])
    assert [sequence.tokens for sequence in apart] == [sequence.tokens for sequence in together]
    assert [3, 2] in rows


def test_prompts_that_arrive_together_are_grouped_by_what_fits_when_their_turn_comes(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(admission_module, "BURST_SECONDS", 1e-9)
    texts = [*[QUESTIONS[0]] * 3, *[QUESTIONS[0] + " " + QUESTIONS[1]] * 3, QUESTIONS[2]]
    scheduler.run(together := [make(tokenizer, text, 6) for text in texts])
    for sequence, text in zip(together, texts, strict=True):
        scheduler.run([alone := make(tokenizer, text, 6)])
        assert sequence.tokens == alone.tokens


def test_prompts_are_computed_side_by_side_while_nobody_awaits_a_token(monkeypatch):
    prompts = Prompts(monkeypatch)
    for together, patient in ((0, LONGEST), (4 * LONGEST, 4 * LONGEST)):
        prompts.admission.together = together
        prompts.step(awaited=False)
        assert prompts.admission.room == patient
        prompts.step()
        assert prompts.admission.room == prompts.admission.piece <= LONGEST
