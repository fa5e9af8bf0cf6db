"""Penalties, biases and log-probabilities, on every engine against the logits of transformers."""

import math

import numpy as np
import pytest

from steps.wrappers.contract.interfaces import COMPLETIONS
from steps.wrappers.contract.requests import Contract
from steps.wrappers.engines.sampling import draw, highest, score
from tests.conftest import SPAIN
from tests.wrappers.conftest import DEFAULTS


def _row(**fields):
    return {"messages": [{"role": "user", "content": SPAIN}], "max_tokens": 12} | fields


@pytest.fixture(scope="module")
def reference(checkpoint):
    """The log-probabilities [tokens, vocabulary] that transformers gives for token ids."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)

    def logprobs(tokens):
        with torch.inference_mode():
            return torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1).numpy()

    return logprobs


def test_log_probabilities_are_those_of_the_model_and_change_no_token(complete, reference):
    ((plain,), (scored,)) = complete(_row(), _row(logprobs=True, top_logprobs=3))
    assert scored.tokens == plain.tokens
    assert plain.scores == []
    expected = reference([*scored.prompt, *scored.tokens])[len(scored.prompt) - 1 : -1]
    for found, token, row in zip(scored.scores, scored.tokens, expected, strict=True):
        assert found.token == token == found.best[0][0]
        assert found.logprob == pytest.approx(row[token], abs=2e-3)
        assert [logprob for _, logprob in found.best] == pytest.approx(sorted(row, reverse=True)[:3], abs=2e-3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_forbids_or_forces_a_token(complete, temperature):
    ((free,),) = complete(_row())
    first = free.tokens[0]
    fields = {"temperature": temperature, "seed": 1}
    ((forbidden,), (forced,)) = complete(
        _row(logit_bias={str(first): -100}, **fields), _row(logit_bias={str(first): 100}, max_tokens=5, **fields)
    )
    assert first not in forbidden.tokens
    assert forced.tokens == [first] * 5


def test_frequency_penalty_ends_repetition(complete):
    ((free,),) = complete(_row())
    bias = {"logit_bias": {str(free.tokens[0]): 30}, "max_tokens": 40}
    ((repeated,), (penalized,)) = complete(_row(**bias), _row(frequency_penalty=2.0, **bias))
    assert len(set(repeated.tokens)) == 1
    assert len(set(penalized.tokens)) > 1


def test_free_rows_of_a_batch_do_not_change(complete):
    (alone,) = complete(_row())
    rows = [_row(), _row(logprobs=True), _row(presence_penalty=2.0), _row(logit_bias={"5": 5})]
    assert complete(*rows)[0][0].text == alone[0].text


def test_echo_scores_the_prompt(scheduler, tokenizer, reference):
    contract = Contract(COMPLETIONS, tokenizer, tokenizer.context_length, DEFAULTS)
    prompts = [SPAIN, "Madrid is the capital of Spain. " * 3]
    rows = [{"prompt": prompt, "echo": True, "logprobs": True, "max_tokens": 1} for prompt in prompts]
    sequences = [request.sequences(tokenizer)[0] for request in contract.requests(rows, None)]
    scheduler.run(sequences)
    for sequence in sequences:
        expected = reference(sequence.prompt)
        found = [score.logprob for score in sequence.prompt_scores]
        tokens = sequence.prompt[1:]
        assert found == pytest.approx([row[token] for row, token in zip(expected, tokens, strict=False)], abs=2e-3)
        content = COMPLETIONS.reply("m", [sequence])["choices"][0]
        names = content["logprobs"]["tokens"]
        assert len(names) == len(content["logprobs"]["token_logprobs"]) == len(sequence.prompt) + 1
        assert content["logprobs"]["token_logprobs"][0] is None
        assert "".join(names[: len(sequence.prompt)]) == sequence.tokenizer.decode(sequence.prompt)


@pytest.mark.parametrize("shape", ["alone", "in a batch"])
def test_greedy_text_is_that_of_a_request_without_log_probabilities(complete, shape):
    rows = [_row(logprobs=True)] * (1 if shape == "alone" else 3)
    (plain,) = complete(_row())
    assert {choices[0].text for choices in complete(*rows)} == {plain[0].text}
    assert all(math.isfinite(score.logprob) for choices in complete(*rows) for score in choices[0].scores)


def test_score_of_a_certain_token():
    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    assert score(logits, 0, 2).best == ((0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2))))
    assert score(logits, 1, 0).logprob == -math.inf


def _probabilities(logits, temperature, top_p, top_k):
    """The definition: sort, cut, divide by the sum."""
    order = np.argsort(-logits.astype(np.float64), kind="stable")[: top_k or None]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    weights /= weights.sum()
    kept = np.cumsum(weights) - weights < top_p
    result = np.zeros(len(logits))
    result[order[kept]] = weights[kept] / weights[kept].sum()
    return result


# Equal values, forbidden tokens at both ends, and vocabularies larger than what is sorted first: peaked and flat.
LOGITS = {
    "equal": [1, 1, 1, 1, 1, 1],
    "forbidden": [-np.inf, 2, 3, 3, 0.5, -np.inf, -1, 3, -np.inf],
    "peaked": 4 * np.sin(np.arange(5000) ** 2.0),
    "flat": 0.1 * np.sin(np.arange(5000) ** 2.0),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 0.95, 0), (2.0, 0.5, 0), (1.0, 1.0, 3), (0.7, 0.9, 4), (1.0, 1e-9, 0), (1.0, 0.6, 10**6)],
)
def test_tokens_are_drawn_by_their_probabilities(name, temperature, top_p, top_k):
    logits = np.array(LOGITS[name], dtype=np.float32)
    expected = _probabilities(logits, temperature, top_p, top_k)
    draws = 20_000
    numbers = (np.arange(draws) + 0.5) / draws
    drawn = [draw(logits, temperature, top_p, top_k, number) for number in numbers[:: 1 if len(logits) < 100 else 40]]
    shares = np.bincount(drawn, minlength=len(logits)) / len(drawn)
    # Tokens are in the order of their numbers, so a draw is wrong by one token's probability at most.
    assert np.abs(np.cumsum(shares) - np.cumsum(expected)).max() < 1.5 / len(drawn) + 1e-5
    assert expected[drawn].min() > 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e-6])
def test_a_temperature_close_to_0_draws_the_likeliest(temperature):
    logits = np.array([1.0, 5.0, 4.999], dtype=np.float32)
    assert {draw(logits, temperature, 1.0, 0, number) for number in (0.0, 0.5, 0.999)} == {1}


@pytest.mark.parametrize("top_k", [0, 5])
def test_the_last_number_draws_no_forbidden_token(top_k):
    logits = np.array([0.1, 0.3, 0.7, -np.inf, -np.inf], dtype=np.float32)
    assert draw(logits, 0.9, 1.0, top_k, np.nextafter(1.0, 0.0)) == 2


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 1.0]])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(bad):
    with pytest.raises(FloatingPointError, match="the highest logit is"):
        draw(np.array(bad, dtype=np.float32), 1.0, 1.0, 0, 0.5)


@pytest.mark.parametrize(
    ("count", "places"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])]
)
def test_the_first_ones_of_equal_values_are_the_highest(count, places):
    assert highest(np.array([2.0, 3.0, 3.0, 2.0, 3.0]), count).tolist() == places
