"""Clients and a harness of the field, as they are installed, against a real `mlflow models serve`.

pip install '.[clients]' && pytest -m service tests/clients
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import mlflow
import pytest

from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel
from steps.store.variants import find_variants
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.serving import app as serving_app
from steps.wrappers.tokenizer import ChatTokenizer
from tests.conftest import PROJECT, SPAIN
from tests.end_to_end.test_serving import serve
from tests.modes.random_phi3 import SIZES, edit_json, without
from tests.support import free_port, make_row, wait_until, write_prompt_set
from tests.wrappers.checkpoints import TEMPLATES
from tests.wrappers.test_openai import serving

# The clients' own warnings are none of ours.
pytestmark = [pytest.mark.service, pytest.mark.filterwarnings("ignore")]

USER = [{"role": "user", "content": SPAIN}]
KEY = "marked-key"
LONG = {"messages": USER, "max_tokens": 400, "logit_bias": {"40": 100}, "n": 8}


@contextlib.contextmanager
def _address(folder, checkpoint, empty_store, *overrides):
    """Serve a model that needs a key; yield its base URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHI3_API_KEY", KEY)
        with serve(folder, checkpoint, empty_store, *overrides) as server:
            yield f"http://127.0.0.1:{server.port}/v1"
            assert KEY not in server.log.read_text()


@pytest.fixture(scope="module", params=["onnx", "pyfunc"])
def served(request, tmp_path_factory, checkpoint, empty_store):
    """The base URL of a served model that needs a key, and the store with the model."""
    folder = tmp_path_factory.mktemp("clients")
    with _address(folder, checkpoint, empty_store, f"mode={request.param}") as address:
        yield address, f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def address(served):
    return served[0]


@pytest.fixture
def our_scores(served, tmp_path, monkeypatch):
    """Evaluate the served variant by the step; return its metrics: `our_scores(rows, "evaluate.metrics=…")`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served[1])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def evaluate(rows, *overrides):
        word, _ = write_prompt_set(tmp_path / "rows.jsonl", rows)
        (variant,) = find_variants(mlflow.MlflowClient(), "0")
        command = [sys.executable, "-m", "steps.evaluate", f"run_id={variant.run_id}", word, *overrides]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return mlflow.get_run(variant.run_id).data.metrics

    return evaluate


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
    for reply in (chunks[-1], whole):
        # The second request finds what the first one has computed.
        reply.usage.prompt_tokens_details = None
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


def test_openai_tries_a_full_server_again(checkpoint, monkeypatch):
    from openai import OpenAI

    from steps.wrappers.engines.torch_engine import TorchEngine

    scheduler = Scheduler(TorchEngine(str(checkpoint.directory), "fp32", 16, "cpu"))
    monkeypatch.setattr(serving_app, "MAX_REQUESTS", 0)
    with serving(scheduler, ChatTokenizer(checkpoint.directory)) as server:
        room = threading.Timer(2, monkeypatch.setattr, (serving_app, "MAX_REQUESTS", 256))
        with OpenAI(base_url=f"{str(server.base_url).rstrip('/')}/v1", api_key="any", max_retries=9) as client:
            room.start()
            reply = client.chat.completions.create(model="phi3", messages=USER)
        room.join()
        assert 'status="429"' in server.get("/metrics").text
    assert "Madrid" in reply.choices[0].message.content


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


QUESTIONS = {"Spain": "Madrid", "France": "Paris", "Norway": "Oslo", "Italy": "Rome", "Peru": "Lima", "Malta": "Oslo"}
CITIES = ["Madrid", "Paris", "Oslo", "Rome", "Lima", "a town that nobody knows"]


@pytest.fixture(scope="module")
def rows():
    """Choice questions, some of which the miniature gets wrong."""
    texts = ("What is the capital of {}?", "{}: its capital?")
    return [
        make_row(f"{text} {country}", text.format(country), city, choices=CITIES)
        for country, city in QUESTIONS.items()
        for text in texts
    ]


def _their_scores(folder, rows, model, output_type, **config):
    """Evaluate the same rows by lm-eval with the chat template; return its results."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    file = folder / "harness.jsonl"
    lines = [{"question": row["prompt"], "choices": CITIES, "target": row["target"]} for row in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "output_type": output_type,
    }
    task = ConfigurableTask(config=common | config)
    return lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, apply_chat_template=True)["results"]


def _compared(name, ours, their_name, theirs, count):
    score = f"{name} {ours[f'{name}/mean']:.4f}"
    return f"{count} rows: {score} in the scorecard, {their_name} {theirs[f'{their_name},none']:.4f} of lm-eval"


@pytest.mark.slow
def test_lm_eval_gives_choices_our_scores(address, checkpoint, rows, our_scores, tmp_path, monkeypatch, figure):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = LocalCompletionsAPI(
        base_url=f"{address}/completions", model="phi3", tokenizer=str(checkpoint.directory), max_length=512
    )
    metrics = [{"metric": "acc"}, {"metric": "acc_norm"}]
    config = {"doc_to_choice": "choices", "doc_to_target": "{{choices.index(target)}}", "metric_list": metrics}
    theirs = _their_scores(tmp_path, rows, model, "multiple_choice", **config)["ours"]
    ours = our_scores(rows, "evaluate.metrics=[choice_match,choice_match_norm]")
    assert 0 < ours["choice_match/mean"] < 1
    assert ours["choice_match/mean"] == pytest.approx(theirs["acc,none"])
    assert ours["choice_match_norm/mean"] == pytest.approx(theirs["acc_norm,none"])
    for name, their_name in (("choice_match", "acc"), ("choice_match_norm", "acc_norm")):
        figure(_compared(name, ours, their_name, theirs, len(rows)))


@pytest.mark.slow
def test_lm_eval_gives_generated_answers_our_score(address, rows, our_scores, tmp_path, monkeypatch, figure):
    from lm_eval.models.openai_completions import LocalChatCompletion

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = LocalChatCompletion(base_url=f"{address}/chat/completions", model="phi3")
    # The miniature answers in sentences.
    rows = [
        make_row(row["id"], row["prompt"], f"The capital of {row['id'].split()[-1]} is {row['target']}.")
        for row in rows
    ]
    generation = {"until": ["\n"], "max_gen_toks": 40, "temperature": 0}
    exact = {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}
    config = {"doc_to_target": "{{target}}", "generation_kwargs": generation, "metric_list": [exact]}
    theirs = _their_scores(tmp_path, rows, model, "generate_until", **config)["ours"]
    ours = our_scores(rows, "evaluate.metrics=[exact_match]")
    assert 0 < ours["exact_match/mean"] < 1
    assert ours["exact_match/mean"] == pytest.approx(theirs["exact_match,none"])
    figure(_compared("exact_match", ours, "exact_match", theirs, len(rows)))


READ_STREAM = """
import json, sys
from mlflow.deployments import get_deploy_client

inputs = json.loads(sys.argv[1])
print(json.dumps(list(get_deploy_client("databricks").predict_stream(endpoint="..", inputs=inputs))))
"""


def test_mlflows_own_client_reads_the_stream_of_invocations(address):
    """It asks /serving-endpoints/ENDPOINT/invocations of a host; `..` makes that /invocations.

    It leaves its connection open, so it has a process of its own.
    """
    host = address.removesuffix("/v1")
    settings = os.environ | {"DATABRICKS_HOST": host, "DATABRICKS_TOKEN": KEY}
    command = [sys.executable, "-c", READ_STREAM, json.dumps({"messages": USER})]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    chunks = json.loads(done.stdout)
    reply = httpx.post(f"{host}/invocations", json={"messages": USER}, headers={"authorization": f"Bearer {KEY}"})
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == reply.json()["choices"][0]["message"]["content"]
    assert len(chunks) > 2


@pytest.fixture
def gateway(address, tmp_path):
    """The address of MLflow's AI gateway in front of the served model."""
    pytest.importorskip("slowapi", reason="MLflow's gateway needs packages of its own: pip install 'mlflow[gateway]'")
    provider = {"provider": "openai", "name": "phi3"}
    provider["config"] = {"openai_api_key": KEY, "openai_api_base": address}
    endpoints = [
        {"name": kind, "endpoint_type": f"llm/v1/{kind}", "model": provider} for kind in ("chat", "completions")
    ]
    (tmp_path / "gateway.yaml").write_text(json.dumps({"endpoints": endpoints}))
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "gateway", "start", "--port", str(port)]
    command += ["--config-path", str(tmp_path / "gateway.yaml")]
    environment = os.environ | {"MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true"}
    with (tmp_path / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_until(lambda: _is_up(process, f"http://127.0.0.1:{port}/health"), seconds=60)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def _is_up(process, url):
    assert process.poll() is None
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200


def test_mlflows_gateway(gateway):
    chat = httpx.post(f"{gateway}/gateway/chat/invocations", json={"messages": USER, "max_tokens": 40}, timeout=60)
    assert chat.status_code == 200, chat.text
    assert "Madrid" in chat.json()["choices"][0]["message"]["content"]
    streamed = httpx.post(f"{gateway}/gateway/chat/invocations", json={"messages": USER, "stream": True}, timeout=60)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "Madrid" in "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    body = {"prompt": SPAIN, "max_tokens": 5}
    completion = httpx.post(f"{gateway}/gateway/completions/invocations", json=body, timeout=60)
    assert completion.status_code == 200, completion.text
    assert len(completion.json()["choices"]) == 1
    refused = httpx.post(
        f"{gateway}/gateway/chat/invocations", json={"messages": USER, "max_tokens": 10**7}, timeout=60
    )
    assert refused.status_code == 400
    assert "max_tokens must be at most" in refused.text


@pytest.fixture(scope="module", params=["onnx", "pyfunc"])
def tool_address(request, tmp_path_factory, checkpoint, empty_store):
    """The base URL of the miniature with a chat template that takes tools, and with a longer context."""
    folder = tmp_path_factory.mktemp("tools")
    shutil.copytree(checkpoint.directory, folder / "checkpoint")
    for manifest in (folder / "checkpoint").glob("*manifest.json"):
        manifest.unlink()
    (folder / "checkpoint" / "chat_template.jinja").write_text(TEMPLATES["phi4_mini"])
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    edit_json(folder / "checkpoint" / "config.json", without(**lengths))
    local = resolve(FolderModel(name="local", path=str(folder / "checkpoint")))
    overrides = ["model=local", f"model.path={folder / 'checkpoint'}", f"mode={request.param}"]
    with _address(folder, local, empty_store, *overrides) as address:
        yield address


@pytest.fixture
def tool_client(tool_address):
    from openai import OpenAI

    with OpenAI(base_url=tool_address, api_key=KEY, max_retries=0) as client:
        yield client


def _weather():
    from typing import Literal

    import openai
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: Literal["Madrid", "Paris"]
        days: Literal[1, 2, 3]

    return Weather, [openai.pydantic_function_tool(Weather)]


def test_openai_calls_a_tool_and_gets_its_result(tool_client):
    _, tools = _weather()
    create = tool_client.chat.completions.create
    reply = create(model="phi3", messages=USER, tools=tools, tool_choice="required", parallel_tool_calls=False)
    (choice,) = reply.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Madrid", "Paris")
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    after = create(model="phi3", messages=[*USER, choice.message, result], tools=tools, max_tokens=5)
    assert after.usage.prompt_tokens > reply.usage.prompt_tokens


def test_openai_parses_and_streams_calls(tool_client):
    weather, tools = _weather()
    asked = {"model": "phi3", "messages": USER, "tools": tools, "tool_choice": "required"}
    parsed = tool_client.chat.completions.parse(**asked)
    calls = parsed.choices[0].message.tool_calls
    assert all(isinstance(call.function.parsed_arguments, weather) for call in calls)
    with tool_client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    arguments = [
        [call.function.parsed_arguments for call in message.tool_calls]
        for message in (streamed.message, parsed.choices[0].message)
    ]
    assert arguments[0] == arguments[1]


def test_langchain_calls_tools(tool_client):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    weather, _ = _weather()
    model = ChatOpenAI(base_url=str(tool_client.base_url), api_key=KEY, model="phi3", temperature=0, max_tokens=400)
    bound = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    reply = bound.invoke(SPAIN)
    (call,) = reply.tool_calls
    assert call["name"] == "Weather"
    history = [HumanMessage(SPAIN), reply, ToolMessage("sun", tool_call_id=call["id"])]
    assert model.bind_tools([weather]).invoke(history).content is not None
    assert isinstance(model.with_structured_output(weather, method="json_schema").invoke(SPAIN), weather)


def _constant_phi3(folder, checkpoint):
    """Make a model that always likes the same tokens best, so that it ends every string and number at once."""
    import torch
    from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    lengths = dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), 4096)
    sizes = SIZES | ids | lengths | {"vocab_size": len(tokenizer)}
    model = Phi3ForCausalLM(Phi3Config(**sizes))
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(1.0 if weights.dim() == 1 else 0.0)
        model.model.embed_tokens.weight.fill_(1.0)
        for likeness, text in enumerate('0 ,}"'):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(text)] = likeness
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory, checkpoint, empty_store):
    """The base URL of a served model that judges."""
    folder = tmp_path_factory.mktemp("judge")
    path = _constant_phi3(folder / "checkpoint", checkpoint)
    overrides = ["model=local", f"model.path={path}", "mode=onnx"]
    local = resolve(FolderModel(name="local", path=str(path)))
    with _address(folder, local, empty_store, *overrides) as address:
        yield address


def test_served_model_judges_answers(judge, our_scores):
    """Its judgement is worth nothing, but it has the form that MLflow's judge asks for."""
    overrides = ["evaluate.judge.model=phi3", f"evaluate.judge.address={judge}"]
    metrics = our_scores([make_row("a"), make_row("b")], "evaluate.metrics=[answer_match]", *overrides)
    assert metrics["judge/mean"] == 0
