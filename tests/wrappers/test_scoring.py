"""Scoring given texts: every engine gives the log-probabilities that transformers' own forward pass gives."""

import numpy as np
import pytest

from steps.wrappers.scoring import score_tokens
from tests.conftest import SPAIN

ANSWERS = ("Madrid", "The capital of Spain is Madrid.", "?")
LONG = " ".join([SPAIN] * 20)


def _pairs(tokenizer, *questions):
    pairs = []
    for question in questions:
        text = tokenizer.render([{"role": "user", "content": question}])
        prompt = tokenizer.encode(text)
        pairs += [(prompt, tokenizer.encode(text + answer)[len(prompt) :]) for answer in ANSWERS]
    return pairs


@pytest.fixture(autouse=True)
def short_passes(torch_scheduler, onnx_scheduler, int4_scheduler, monkeypatch):
    """Let the continuation of a long prompt begin in another pass than the prompt."""
    for scheduler in (torch_scheduler, onnx_scheduler, int4_scheduler):
        monkeypatch.setattr(scheduler.engine.admission, "longest", 32)


@pytest.fixture(scope="module")
def reference(checkpoint):
    """Return the log-probabilities of a pair [tokens, vocabulary] by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()

    def whole(prompt, rest):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + rest])).logits[0]
        return torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1].numpy()

    return whole


@pytest.mark.parametrize("engine", ["torch", "onnx", "genai", "openvino"])
@pytest.mark.parametrize("question", [SPAIN, LONG], ids=["short", "long"])
def test_engines_score_given_texts_as_transformers_does(request, engine, question, tokenizer, reference):
    scheduler, pairs = request.getfixturevalue(f"{engine}_scheduler"), _pairs(tokenizer, question)
    scored = score_tokens(scheduler, tokenizer, pairs, whole_vocabulary=False)
    whole = score_tokens(scheduler, tokenizer, pairs, whole_vocabulary=True)
    for (prompt, rest), one, every in zip(pairs, scored, whole, strict=True):
        expected = reference(prompt, rest)
        assert every == pytest.approx(expected, abs=1e-4)
        assert one == pytest.approx(expected[np.arange(len(rest)), rest], abs=1e-4)


@pytest.mark.parametrize("question", [SPAIN, LONG], ids=["short", "long"])
def test_a_graph_that_gives_the_last_logits_only_scores_every_token(
    int4_scheduler, int4_genai_scheduler, tokenizer, question
):
    pairs = _pairs(tokenizer, question)
    ours, theirs = (
        score_tokens(scheduler, tokenizer, pairs, whole_vocabulary=True)
        for scheduler in (int4_scheduler, int4_genai_scheduler)
    )
    assert [len(each) for each in ours] == [len(rest) for _, rest in pairs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("engine", ["torch", "onnx", "int4", "openvino"])
def test_a_score_is_the_same_to_the_bit_alone_and_among_others(request, engine, tokenizer):
    scheduler, pairs = request.getfixturevalue(f"{engine}_scheduler"), _pairs(tokenizer, SPAIN, "Who wrote Hamlet?")
    together = score_tokens(scheduler, tokenizer, pairs, whole_vocabulary=True)
    alone = [score_tokens(scheduler, tokenizer, [pair], whole_vocabulary=True)[0] for pair in reversed(pairs)]
    assert all(np.array_equal(one, other) for one, other in zip(together, reversed(alone), strict=True))
