"""Clients and a harness of the field, as they are installed, against a real `mlflow models serve`.

pip install '.[clients]' && pytest -m service tests/clients
"""

import asyncio
import json
import time

import httpx
import pytest

from tests.conftest import SPAIN
from tests.end_to_end.test_serving import serve
from tests.support import wait_until

# The clients' own warnings are none of ours.
pytestmark = [pytest.mark.service, pytest.mark.filterwarnings("ignore")]

USER = [{"role": "user", "content": SPAIN}]
KEY = "marked-key"
LONG = {"messages": USER, "max_tokens": 400, "logit_bias": {"40": 100}, "n": 8}


@pytest.fixture(scope="module", params=["onnx", "pyfunc"])
def address(request, tmp_path_factory, checkpoint, empty_store):
    """The base URL of a served model that needs a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHI3_API_KEY", KEY)
        folder = tmp_path_factory.mktemp("clients")
        with serve(folder, checkpoint, empty_store, f"mode={request.param}") as server:
            yield f"http://127.0.0.1:{server.port}/v1"
            assert KEY not in server.log.read_text()


@pytest.fixture
def client(address):
    from openai import OpenAI

    with OpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
        yield client


def _batch_size(address):
    text = httpx.get(address.replace("/v1", "/metrics"), headers={"authorization": f"Bearer {KEY}"}).text
    return float(next(line for line in text.splitlines() if line.startswith("phi3_batch_size")).split()[-1])


def test_openai_chat(client):
    reply = client.chat.completions.create(model="phi3", messages=USER, n=2, logprobs=True, top_logprobs=2)
    assert ["Madrid" in choice.message.content for choice in reply.choices] == [True, True]
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id


def test_openai_stream(client):
    whole = client.chat.completions.create(model="phi3", messages=USER)
    chunks = list(
        client.chat.completions.create(model="phi3", messages=USER, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_openai_async(address):
    from openai import AsyncOpenAI

    async def ask():
        async with AsyncOpenAI(base_url=address, api_key=KEY) as client:
            calls = [client.chat.completions.create(model="phi3", messages=USER) for _ in range(8)]
            return {reply.choices[0].message.content for reply in await asyncio.gather(*calls)}

    (text,) = asyncio.run(ask())
    assert "Madrid" in text


def test_openai_completions(client):
    reply = client.completions.create(model="phi3", prompt=[SPAIN, "a"], max_tokens=2, echo=True, logprobs=1)
    assert [choice.text[: len(text)] for choice, text in zip(reply.choices, (SPAIN, "a"), strict=True)] == [SPAIN, "a"]
    assert reply.choices[0].logprobs.token_logprobs[0] is None


def test_openai_parses_a_reply_by_its_schema(client):
    from typing import Literal

    from pydantic import BaseModel

    class Answer(BaseModel):
        city: Literal["Madrid", "Paris"]
        sure: bool

    reply = client.chat.completions.parse(model="phi3", messages=USER, response_format=Answer)
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_openai_errors_are_its_exception_classes(client, address):
    import openai

    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="phi3", messages=USER, temperature=3)
    assert (refusal.value.code, refusal.value.param) == ("invalid_temperature", "temperature")
    with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=address, api_key="wrong") as stranger:
        stranger.models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="phi3", messages=USER, tools=[{"type": "function"}])


def test_cancelled_openai_stream_frees_its_places(client, address):
    stream = client.chat.completions.create(model="phi3", stream=True, **LONG)
    next(iter(stream))
    stream.close()
    begun = time.monotonic()
    wait_until(lambda: _batch_size(address) == 0, seconds=5)
    assert time.monotonic() - begun < 5


def test_langchain(address):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=address, api_key=KEY, model="phi3", temperature=0)
    assert "Madrid" in model.invoke(SPAIN).content
    assert "Madrid" in "".join(chunk.content for chunk in model.stream(SPAIN))


@pytest.fixture
def lm_eval_task(tmp_path, monkeypatch):
    """Make a task of lm-eval over a local file: `lm_eval_task("multiple_choice", …)`."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [
        {"question": "What is the capital of Spain?", "choices": ["Madrid", "Paris", "Oslo"], "label": 0},
        {"question": "What is the capital of France?", "choices": ["Rome", "Paris", "Madrid"], "label": 1},
        {"question": "What is the capital of Norway?", "choices": ["Rome", "Berlin", "Oslo"], "label": 2},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(output_type, **config):
        from lm_eval.api.task import ConfigurableTask

        common = {
            "task": output_type,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "output_type": output_type,
        }
        return ConfigurableTask(config=common | config)

    return rows, make


def _evaluate(model, task):
    import lm_eval

    return lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)


@pytest.mark.slow
def test_lm_eval_scores_choices_by_our_log_probabilities(address, checkpoint, lm_eval_task, monkeypatch):
    import torch
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, make = lm_eval_task
    task = make("multiple_choice", doc_to_choice="choices", doc_to_target="label", metric_list=[{"metric": "acc"}])
    model = LocalCompletionsAPI(
        base_url=f"{address}/completions", model="phi3", tokenizer=str(checkpoint.directory), max_length=512
    )
    samples = _evaluate(model, task)["samples"]["multiple_choice"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)
    for row, sample in zip(rows, samples, strict=True):
        expected = []
        for choice in row["choices"]:
            context = tokenizer.encode(row["question"], add_special_tokens=False)
            whole = tokenizer.encode(f"{row['question']} {choice}", add_special_tokens=False)
            with torch.inference_mode():
                logprobs = torch.log_softmax(reference(torch.tensor([whole])).logits[0].double(), dim=-1)
            expected.append(sum(float(logprobs[at - 1, whole[at]]) for at in range(len(context), len(whole))))
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(expected, abs=0.01)
        assert sample["acc"] == float(max(range(3), key=expected.__getitem__) == row["label"])


@pytest.mark.slow
def test_lm_eval_generates_by_chat(address, lm_eval_task):
    from lm_eval.models.openai_completions import LocalChatCompletion

    rows, make = lm_eval_task
    task = make(
        "generate_until",
        doc_to_target="{{choices[label]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 40},
        metric_list=[{"metric": "exact_match"}],
    )
    model = LocalChatCompletion(base_url=f"{address}/chat/completions", model="phi3")
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=model, tasks=[task], log_samples=True, bootstrap_iters=0, apply_chat_template=True
    )
    texts = [sample["filtered_resps"][0] for sample in results["samples"]["generate_until"]]
    assert "Madrid" in texts[0]
    assert len(texts) == len(rows)
