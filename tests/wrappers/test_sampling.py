"""Penalties, biases and log-probabilities, on every engine against the logits of transformers."""

import math

import numpy as np
import pytest

from steps.wrappers.contract.interfaces import COMPLETIONS
from steps.wrappers.contract.requests import Contract
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
    for score, token, row in zip(scored.scores, scored.tokens, expected, strict=True):
        assert score.token == token == score.best[0][0]
        assert score.logprob == pytest.approx(row[token], abs=2e-3)
        assert [logprob for _, logprob in score.best] == pytest.approx(sorted(row, reverse=True)[:3], abs=2e-3)


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
    from steps.wrappers.engines.sampling import score

    logits = np.array([0.0, -np.inf, 0.0], dtype=np.float32)
    assert score(logits, 0, 2).best == ((0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2))))
    assert score(logits, 1, 0).logprob == -math.inf
