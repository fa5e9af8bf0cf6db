"""A stream's pieces join to the answer of predict, on a model with random weights that writes any byte."""

import pytest

from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.tokenizer import ChatTokenizer
from tests.wrappers import checkpoints
from tests.wrappers.checkpoints import KINDS


@pytest.fixture(scope="module", params=KINDS)
def random_model(request, tmp_path_factory):
    """A tokenizer of either kind and a scheduler over a Phi-3 with random weights."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    from steps.wrappers.engines.torch_engine import TorchEngine

    folder = checkpoints.write(tmp_path_factory.mktemp("model"), KINDS[request.param](), checkpoints.TEMPLATES["phi3"])
    tokenizer = ChatTokenizer(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Phi3Config(vocab_size=320, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, **size)
        Phi3ForCausalLM(config).save_pretrained(folder)
    return tokenizer, Scheduler(TorchEngine(str(folder), "fp32", 16, "cpu"))


@pytest.mark.parametrize("stop", [(), ("\ufffd\ufffd", "the")], ids=["no stop strings", "stop strings"])
def test_stream_and_predict_give_the_same_text(random_model, stop):
    tokenizer, scheduler = random_model
    prompt, streamed = tokenizer.encode("the cat"), []
    settings = [Settings(2.0, 1.0, 0, 12, stop, seed) for seed in range(60)]
    answers = [Sequence(prompt, each, tokenizer) for each in settings]
    scheduler.run(answers)
    for each in settings:
        streamed.append("".join(scheduler.stream(Sequence(prompt, each, tokenizer))))
    assert streamed == [answer.text for answer in answers]
    if not stop:
        assert [answer.text for answer in answers] == [tokenizer.decode(answer.tokens) for answer in answers]
    assert sum("\ufffd" in answer.text for answer in answers) >= 5
