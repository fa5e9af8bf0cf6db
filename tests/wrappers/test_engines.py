"""The engines: greedy answers, batches, sampling, stop strings, token limits, many callers."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.config.schema import PromptSet
from steps.evaluation import prompt_set
from steps.wrappers.contract.errors import RequestError
from steps.wrappers.engines.prefix_cache import PrefixCache
from steps.wrappers.engines.sequence import Sequence, Settings
from tests.conftest import SPAIN
from tests.gpu import GPU

ROWS = prompt_set.load(PromptSet("facts", "conf/prompt_set/facts.jsonl")).rows
QUESTIONS = [row.question for row in ROWS]


def _ask(question=SPAIN, **fields):
    return {"messages": [{"role": "user", "content": question}]} | fields


def test_miniature_knows_the_capital_of_spain(complete):
    ((choice,),) = complete(_ask())
    assert "Madrid" in choice.text
    assert choice.finish_reason == "stop"
    assert "<|" not in choice.text


def test_engines_give_the_same_greedy_answers(
    torch_scheduler, packed_scheduler, onnx_scheduler, genai_scheduler, openvino_scheduler, contract, tokenizer
):
    requests = contract.requests([_ask(question) for question in QUESTIONS], None)
    answers = []
    for scheduler in (torch_scheduler, packed_scheduler, onnx_scheduler, genai_scheduler, openvino_scheduler):
        sequences = [request.sequences(tokenizer)[0] for request in requests]
        scheduler.run(sequences)
        answers.append([sequence.tokens for sequence in sequences])
    assert all(others == answers[0] for others in answers)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("engine", ["torch", "packed", "onnx", "int4", "genai", "openvino", *GPU])
def test_answers_in_a_batch_equal_answers_alone(request, engine, contract, tokenizer, data):
    """Rows have mixed lengths and limits, and there may be more of them than fit into the batch."""
    scheduler = request.getfixturevalue(f"{engine}_scheduler")
    rows = data.draw(
        st.lists(
            st.builds(
                lambda question, words, max_tokens: _ask(" ".join([*words, question]), max_tokens=max_tokens),
                st.sampled_from(QUESTIONS),
                st.lists(st.sampled_from(["please", "tell", "me", "now"]), max_size=30),
                st.integers(1, 12),
            ),
            min_size=1,
            max_size=24,
        )
    )
    requests = contract.requests(rows, None)
    together = [entry.sequences(tokenizer)[0] for entry in requests]
    scheduler.run(together)
    for entry, sequence in zip(requests, together, strict=True):
        (alone,) = entry.sequences(tokenizer)
        scheduler.run([alone])
        assert (alone.tokens, alone.finish_reason) == (sequence.tokens, sequence.finish_reason)


def test_seed_repeats_an_answer_and_choices_differ(complete):
    row = _ask(temperature=2.0, n=4, custom_inputs={"seed": 3})
    first, again = complete(row)[0], complete(row)[0]
    assert [choice.tokens for choice in first] == [choice.tokens for choice in again]
    assert len({choice.text for choice in first}) > 1


def test_engines_sample_the_same_with_a_seed(torch_scheduler, onnx_scheduler, openvino_scheduler, contract, tokenizer):
    (request,) = contract.requests([_ask(temperature=1.0, top_p=0.9, top_k=50, n=8, custom_inputs={"seed": 1})], None)
    texts = []
    for scheduler in (torch_scheduler, onnx_scheduler, openvino_scheduler):
        choices = request.sequences(tokenizer)
        scheduler.run(choices)
        texts.append([choice.text for choice in choices])
    assert texts[0] == texts[1] == texts[2]


def test_sampling_without_a_seed_works(complete):
    (choices,) = complete(_ask(temperature=1.5, n=8))
    assert all(choice.finish_reason in ("stop", "length") for choice in choices)


def test_tiny_top_p_and_top_k_1_are_greedy(complete):
    (greedy,), (nucleus,), (top,) = complete(
        _ask(), _ask(temperature=2.0, top_p=1e-6), _ask(temperature=2.0, top_k=1, custom_inputs={"seed": 1})
    )
    assert greedy.text == nucleus.text == top.text


def test_answer_ends_before_a_stop_string(complete):
    ((whole,), (cut,)) = complete(_ask(), _ask(stop=["never", " Mad"]))
    assert cut.text == whole.text[: whole.text.index(" Mad")]
    assert cut.finish_reason == "stop"


def test_max_tokens_ends_an_answer_with_length(complete):
    ((choice,),) = complete(_ask(max_tokens=2))
    assert len(choice.tokens) == 2
    assert choice.finish_reason == "length"


def test_concurrent_callers_get_their_own_answers(scheduler, contract, tokenizer):
    def ask(question):
        (request,) = contract.requests([_ask(question)], None)
        (sequence,) = request.sequences(tokenizer)
        scheduler.run([sequence])
        return sequence.text

    alone = [ask(question) for question in QUESTIONS[:32]]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, QUESTIONS[:32])) == alone


def test_cancelling_a_sequence_releases_its_slot(scheduler, contract, tokenizer, monkeypatch):
    step = scheduler.engine.step
    monkeypatch.setattr(scheduler.engine, "step", lambda arriving: time.sleep(0.02) or step(arriving))
    monkeypatch.setattr(tokenizer, "end_tokens", frozenset())  # so it would continue for 400 tokens
    (request,) = contract.requests([_ask(temperature=2.0, max_tokens=400, custom_inputs={"seed": 1})], None)
    (cancelled,) = request.sequences(tokenizer)
    scheduler.submit([cancelled])
    while len(cancelled.tokens) < 3:
        assert cancelled.progress.wait(30)
        cancelled.progress.clear()
    before = len(cancelled.tokens)
    scheduler.cancel([cancelled])
    assert cancelled.done.wait(30)
    assert cancelled.error.code == "cancelled"
    assert len(cancelled.tokens) <= before + 2
    (running,) = contract.requests([_ask(max_tokens=3)], None)[0].sequences(tokenizer)
    scheduler.run([running])
    assert "The" in running.text
    assert len(cancelled.tokens) <= before + 2


def test_stream_gives_the_same_answer_in_pieces(scheduler, complete, contract, tokenizer, monkeypatch):
    ((whole,),) = complete(_ask())
    step = scheduler.engine.step
    # A slow reader gets several tokens in one piece, so slow down the engine.
    monkeypatch.setattr(scheduler.engine, "step", lambda arriving: time.sleep(0.05) or step(arriving))
    (request,) = contract.requests([_ask()], None)
    pieces = list(scheduler.stream(request.sequences(tokenizer)[0]))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_slowly_read_stream_is_complete(scheduler, complete, contract, tokenizer):
    ((whole,),) = complete(_ask())
    pieces = []
    for piece in scheduler.stream(contract.requests([_ask()], None)[0].sequences(tokenizer)[0]):
        pieces.append(piece)
        time.sleep(0.2)
    assert "".join(pieces) == whole.text


def test_stream_holds_back_the_beginning_of_a_stop_string(scheduler, contract, tokenizer):
    (request,) = contract.requests([_ask(stop=["The capital of Spain is Madrid"])], None)
    assert list(scheduler.stream(request.sequences(tokenizer)[0])) == []


@pytest.mark.parametrize("fields", [{"top_k": 100_000}, {"top_k": 5, "custom_inputs": {"seed": 1}}])
def test_settings_at_the_limits_of_the_model_are_answered(complete, fields):
    long = "the " * 400
    ((choice,), (filled,)) = complete(_ask(temperature=1.0, **fields), _ask(long, temperature=1.0, **fields))
    assert choice.finish_reason
    assert filled.finish_reason


def test_full_queue_is_refused_at_once(scheduler, contract, tokenizer, monkeypatch):
    from steps.wrappers.engines import scheduler as module

    monkeypatch.setattr(module, "MAX_WAITING", 4)
    (request,) = contract.requests([_ask(n=8)], None)
    with pytest.raises(RequestError) as refusal:
        scheduler.run(request.sequences(tokenizer))
    assert refusal.value.code == "queue_full"
    assert refusal.value.get_http_status_code() == 429


def test_engine_failure_is_reported_and_the_next_request_is_answered(scheduler, contract, tokenizer, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(scheduler.engine, "step", lambda arriving: 1 / 0)
        sequences = contract.requests([_ask(n=2)], None)[0].sequences(tokenizer)
        with pytest.raises(RequestError, match="engine_failed") as failure:
            scheduler.run(sequences)
        assert failure.value.get_http_status_code() == 500
        assert len({id(sequence.error) for sequence in sequences}) == 2
        assert not scheduler.is_healthy()
    (sequence,) = contract.requests([_ask()], None)[0].sequences(tokenizer)
    scheduler.run([sequence])
    assert "Madrid" in sequence.text
    assert scheduler.is_healthy()


@pytest.mark.parametrize("place", ["choose", "push"])
def test_failure_of_one_sequence_does_not_stop_the_others(scheduler, complete, contract, tokenizer, monkeypatch, place):
    row = _ask(temperature=1.0, max_tokens=5, n=3, custom_inputs={"seed": 20})
    alone = [choice.tokens for choice in complete(row)[0]]
    assert len(alone[1]) > 1
    original = getattr(Sequence, place)

    def fail_one(sequence, argument):
        if sequence.settings.seed == 21 and len(sequence.tokens) == 1:
            raise IndexError("secret")
        return original(sequence, argument)

    monkeypatch.setattr(Sequence, place, fail_one)
    choices = contract.requests([row], None)[0].sequences(tokenizer)
    with pytest.raises(RequestError, match=r"^\[engine_failed\]"):
        scheduler.run(choices[1:2])
    choices = contract.requests([row], None)[0].sequences(tokenizer)
    scheduler.submit(choices)
    assert all(choice.done.wait(30) for choice in choices)
    assert [choice.error and choice.error.code for choice in choices] == [None, "engine_failed", None]
    assert [choices[0].tokens, choices[2].tokens] == [alone[0], alone[2]]
    assert scheduler.is_healthy()


def prefills(scheduler, sequences, patient=True):
    """The shapes of the passes over prompts, each of which gets one token."""
    shapes = []
    with scheduler.engine.model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        scheduler.submit(sequences, patient=patient)
        scheduler.wait(sequences)
    return shapes


def test_prompts_are_prefilled_with_those_of_similar_length(torch_scheduler, contract, tokenizer, monkeypatch):
    """A long prompt does not add padding to short ones, and no prefill has too many tokens."""
    rows = [_ask("Hi", max_tokens=1), _ask("please " * 100 + SPAIN, max_tokens=1), *[_ask("Ho", max_tokens=1)] * 9]
    sequences = [request.sequences(tokenizer)[0] for request in contract.requests(rows, None)]
    short, long = len(sequences[0].prompt), len(sequences[1].prompt)
    for most in ("longest", "together"):
        monkeypatch.setattr(torch_scheduler.engine.admission, most, 4 * short)
    shapes = prefills(torch_scheduler, sequences, patient=False)
    pieces = [(1, min(4 * short, long - start)) for start in range(0, long, 4 * short)]
    assert shapes == [(4, short), (4, short), (2, short), *pieces]
    assert all(len(sequence.tokens) == 1 for sequence in sequences)


def test_more_prompts_than_a_pass_has_room_for_take_their_passes_side_by_side(
    torch_scheduler, contract, tokenizer, monkeypatch
):
    sequences = [request.sequences(tokenizer)[0] for request in contract.requests([_ask("Ho", max_tokens=1)] * 9, None)]
    length = len(sequences[0].prompt)
    monkeypatch.setattr(torch_scheduler.engine.admission, "longest", 18)
    assert prefills(torch_scheduler, sequences) == [*[(9, 2)] * (length // 2), *[(9, 1)] * (length % 2)]
    monkeypatch.setattr(torch_scheduler.engine.admission, "together", 18)
    alone = [request.sequences(tokenizer)[0] for request in contract.requests([_ask("Ho", max_tokens=1)] * 9, None)]
    assert {rows for rows, _ in prefills(torch_scheduler, alone)} <= {1, 2}
    assert [sequence.tokens for sequence in alone] == [sequence.tokens for sequence in sequences]


@pytest.mark.parametrize(("cost", "rows"), [(0, [3, 1]), (2, [3, 1]), (3, [4]), (100, [4])])
def test_padding_that_costs_less_than_a_pass_is_taken(torch_scheduler, tokenizer, monkeypatch, cost, rows):
    """Three prompts miss one token to the length of the fourth."""
    monkeypatch.setattr(torch_scheduler.engine, "_pass_cost", cost)
    settings = Settings(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1)
    sequences = [Sequence([9 + row] * length, settings, tokenizer) for row, length in enumerate((6, 6, 6, 7))]
    assert [shape[0] for shape in prefills(torch_scheduler, sequences)] == rows


def test_engine_answers_again_after_its_idle_thread_has_ended(scheduler, complete, monkeypatch):
    from steps.wrappers.engines import scheduler as module

    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    for _ in range(2):
        ((choice,),) = complete(_ask())
        assert "Madrid" in choice.text
        # A thread that was already waiting does so for the usual time.
        deadline = time.monotonic() + 30
        while not scheduler.is_idle:
            time.sleep(0.01)
            assert time.monotonic() < deadline
        assert scheduler.is_healthy()


def test_long_prompt_is_prefilled_in_pieces(onnx_scheduler, contract, tokenizer, monkeypatch):
    """The rows are a prompt of many pieces, a prompt of one piece, and two that are prefilled together."""
    from steps.wrappers.engines import onnx_engine

    rows = [_ask("please " * 40 + SPAIN), _ask(SPAIN), _ask("Hi"), _ask("Ho"), _ask("please " * 41 + SPAIN)]
    requests = contract.requests(rows, None)

    def tokens():
        sequences = [request.sequences(tokenizer)[0] for request in requests]
        onnx_scheduler.run(sequences)
        return [sequence.tokens for sequence in sequences]

    expected, shapes = tokens(), []
    # Otherwise the second time would only compute the ends of the prompts.
    monkeypatch.setattr(onnx_scheduler.engine, "_prefixes", PrefixCache(0, 1))
    forward = onnx_engine.OnnxEngine.forward
    monkeypatch.setattr(onnx_scheduler.engine.admission, "longest", 16)
    monkeypatch.setattr(
        onnx_engine.OnnxEngine,
        "forward",
        lambda self, ids, *rest: shapes.append(ids.shape) or forward(self, ids, *rest),
    )
    assert tokens() == expected
    assert max(rows * width for rows, width in shapes) <= 16
    assert sum(shape == (1, 16) for shape in shapes) >= 4
