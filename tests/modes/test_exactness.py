"""Our engines give what transformers gives, token by token and logit by logit, over a table of configurations."""

from collections import defaultdict

import numpy as np
import pytest

from steps.checkpoints.staging import link_checkpoint
from steps.errors import StepError
from steps.modes.onnx_export import export_to_onnx
from steps.modes.openvino_export import export_to_openvino
from steps.wrappers.tokenizer import ChatTokenizer
from tests.gpu import GPU
from tests.modes.random_phi3 import generate, random_phi3, reference, without

OPTIONS = ["hf_remote=false", "hf_token=false"]
COUNT = 10
# Shorter and longer than the windows, and the last ones longer than the original context of the LongRoPE rows.
LENGTHS = (1, 15, 16, 36, 60)
SHORT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
LONG = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
LIMITED = {"max_position_embeddings": 128, "original_max_position_embeddings": 48}
OLD_FORM = {"short_factor": SHORT, "long_factor": LONG}


def _longrope(**more):
    return {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 1e4} | more


CONFIGS = {
    "default": {},
    "window of 1": {"sliding_window": 1},
    "window of 2": {"sliding_window": 2},
    "window of 16": {"sliding_window": 16},
    "window larger than the context": {"sliding_window": 200},
    "window with types of layers, which Phi-3 ignores": {
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "LongRoPE": {"rope_parameters": _longrope(), **LIMITED},
    "LongRoPE with a window": {"rope_parameters": _longrope(), "sliding_window": 10, **LIMITED},
    "LongRoPE with a factor": {"rope_parameters": _longrope(factor=8.0), **LIMITED},
    "LongRoPE with an attention factor": {"rope_parameters": _longrope(attention_factor=1.5), **LIMITED},
    "LongRoPE with scales, which Phi-3 ignores": {
        "rope_parameters": _longrope(short_mscale=1.7, long_mscale=1.9),
        **LIMITED,
    },
    "LongRoPE of one length": {"rope_parameters": _longrope(), **LIMITED, "max_position_embeddings": 48},
    "LongRoPE of a shorter context": {"rope_parameters": _longrope(), **LIMITED, "max_position_embeddings": 47},
    "LongRoPE, partial": {"rope_parameters": _longrope(partial_rotary_factor=0.5), "hidden_size": 128, **LIMITED},
    "LongRoPE as Phi-3 was published": {
        "change": without("rope_parameters", rope_scaling={"type": "longrope", **OLD_FORM}, rope_theta=5e3),
        **LIMITED,
    },
    "LongRoPE by its first name": {
        "change": without("rope_parameters", rope_scaling={"type": "su", **OLD_FORM}),
        **LIMITED,
    },
    "two lengths without LongRoPE": LIMITED,
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "theta as Phi-3 was published": {"change": without("rope_parameters", rope_theta=500.0)},
    "partial rotary": {"hidden_size": 256, "partial_rotary_factor": 0.75},
    "one head of keys for each": {"num_key_value_heads": 4},
    "one head of keys for all": {"num_key_value_heads": 1},
    "tied embeddings": {"tie_word_embeddings": True},
    "vocabulary of 37": {"vocab_size": 37},
    "vocabulary of 1003": {"vocab_size": 1003},
    "heads of 32": {"hidden_size": 128},
    "heads of 80": {"hidden_size": 320},
    "heads of 96": {"hidden_size": 384},
    "heads of 128": {"hidden_size": 512},
    "heads of their own size": {"head_dim": 32},
    "odd sizes": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 50},
    "one layer of one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    "gelu": {"hidden_act": "gelu"},
    "relu": {"hidden_act": "relu"},
    "epsilon": {"rms_norm_eps": 0.1},
    "biases and dropout, which Phi-3 ignores": {
        **{"attention_bias": True, "mlp_bias": True},
        **{"resid_pdrop": 0.5, "attention_dropout": 0.5},
    },
    "keys of other architectures": {
        **{"hidden_activation": "relu", "seq_length": 16, "moe_intermediate_size": 8, "num_layers": 1},
        "ffn_hidden_size": 8,
    },
}


@pytest.fixture
def logits(monkeypatch):
    """The logits of each sequence, as the engines choose tokens by them."""
    from steps.wrappers.engines import flat_engine, onnx_engine, torch_engine

    recorded = defaultdict(list)

    def record(choose):
        def choose_and_record(sequences, best, row_logits):
            for row, sequence in enumerate(sequences):
                recorded[sequence].append(np.array(row_logits(row)))
            return choose(sequences, best, row_logits)

        return choose_and_record

    for module in (flat_engine, onnx_engine, torch_engine):
        monkeypatch.setattr(module, "choose_tokens", record(module.choose_tokens))
    record_drafts(monkeypatch, recorded)
    return recorded


def record_drafts(monkeypatch, recorded):
    """Record the logits of the tokens that a draft gives: they are checked in one pass, and none is chosen."""
    import torch

    from steps.wrappers.engines import flat_engine, onnx_engine, speculation, torch_engine

    passes, advance = [], speculation.Speculation.advance

    def keep(forward):
        def forward_and_keep(self, *inputs):
            passes[:] = [forward(self, *inputs)]
            return passes[0]

        return forward_and_keep

    def run_and_keep(self, tokens, run=flat_engine.FlatEngine._run):
        logits = run(self, tokens)
        passes[:] = [logits[None]]
        return logits

    def advance_and_record(self, sequence, plain, check):
        def check_and_record(draft):
            tokens = check(draft)
            recorded[sequence] += list(torch.as_tensor(passes[0][0]).cpu().numpy()[: len(tokens)].copy())
            return tokens

        return advance(self, sequence, plain, check_and_record)

    monkeypatch.setattr(onnx_engine.OnnxEngine, "forward", keep(onnx_engine.OnnxEngine.forward))
    monkeypatch.setattr(torch_engine.TorchEngine, "_forward", keep(torch_engine.TorchEngine._forward))
    monkeypatch.setattr(flat_engine.FlatEngine, "_run", run_and_keep)
    monkeypatch.setattr(speculation.Speculation, "advance", advance_and_record)


def drafts_of(prompts, answers):
    """Return a speculation that drafts two right tokens and another one, for every pass."""
    from steps.wrappers.engines.speculation import Speculation

    known = {tuple(prompt): tokens for prompt, tokens in zip(prompts, answers, strict=True)}

    class Drafts(Speculation):
        def draft(self, sequence):
            done = len(sequence.tokens)
            return [*known[tuple(sequence.prompt)][done : done + 2], 3][: COUNT - done - 1]

    return Drafts()


@pytest.fixture
def engines(checkpoint, tmp_path):
    """Return the checkpoint's folder, the exported one, and all engines, for a configuration."""

    def make(**config):
        from steps.wrappers.engines.onnx_engine import OnnxEngine
        from steps.wrappers.engines.openvino_engine import load
        from steps.wrappers.engines.torch_engine import TorchEngine

        source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
        staged, exported = link_checkpoint(source, tmp_path / "staged"), tmp_path / "exported"
        exported.mkdir()
        export_to_onnx(source, exported, "fp32", OPTIONS)
        export_to_openvino(source, staged, "fp32")
        on_torch = TorchEngine(str(staged), "fp32", 16, "cpu")
        on_gpu = [TorchEngine(str(staged), "fp32", 16, "cuda") for _ in GPU]
        return staged, exported, (on_torch, OnnxEngine(str(exported), 16), load(str(staged), 16), *on_gpu)

    return make


def prompts_of(vocabulary, context):
    random = np.random.default_rng(0)
    return [random.integers(3, vocabulary, size=size).tolist() for size in LENGTHS if size + COUNT <= context]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_engines_give_what_transformers_gives(engines, logits, monkeypatch, config):
    from steps.wrappers.engines import flat_engine, onnx_engine

    for module in (flat_engine, onnx_engine):
        monkeypatch.setattr(module, "PREFILL_TOKENS", 40)  # so that the longest prompt is prefilled in pieces
    staged, exported, ours = engines(**config)
    context = ChatTokenizer(staged).context_length
    assert ChatTokenizer(exported).context_length == context
    prompts = prompts_of(config.get("vocab_size", 101), context)
    expected = [reference(staged, prompt, COUNT) for prompt in prompts]
    for engine in ours:
        alone = [generate(engine, [prompt], COUNT)[0] for prompt in prompts]
        together = generate(engine, prompts, COUNT)
        joined = generate(engine, [*prompts[1:], prompts[0]], COUNT, late=4)
        monkeypatch.setattr(engine, "_speculation", drafts_of(prompts, [tokens for tokens, _ in expected]))
        drafted = [generate(engine, [prompt], COUNT)[0] for prompt in prompts]
        for sequences in (alone, together, [joined[-1], *joined[:-1]], drafted):
            assert [sequence.tokens for sequence in sequences] == [tokens for tokens, _ in expected]
            for sequence, (_, theirs) in zip(sequences, expected, strict=True):
                np.testing.assert_allclose(logits[sequence], theirs, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"rope_parameters": _longrope(), **LIMITED}, 48),
        ({"rope_parameters": _longrope(), **LIMITED, "max_position_embeddings": 40}, 40),
        # transformers looks for the limit outside of the rotary embedding's parameters only, and takes its default.
        (
            {
                "change": without(
                    *("rope_parameters", "original_max_position_embeddings"),
                    rope_scaling={"type": "longrope", "original_max_position_embeddings": 48, **OLD_FORM},
                    max_position_embeddings=8192,
                )
            },
            4096,
        ),
    ],
)
def test_a_longrope_export_keeps_the_limit_of_the_short_factors(engines, config, context):
    import onnx

    staged, exported, _ = engines(**config)
    assert ChatTokenizer(staged).context_length == context
    (exported / "config.json").unlink()  # the limit is that of the graph
    assert ChatTokenizer(exported).context_length == context
    assert onnx.load(exported / "model.onnx").ByteSize() < 8_000_000  # without long factors for the longest context


@pytest.mark.parametrize("config", [{}, {"sliding_window": 16}, {"tie_word_embeddings": True}], ids=str)
def test_int4_answers_are_the_same_in_a_batch(checkpoint, tmp_path, config):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    source = random_phi3(tmp_path / "source", checkpoint.directory, **config)
    (tmp_path / "exported").mkdir()
    export_to_onnx(source, tmp_path / "exported", "int4", [*OPTIONS, "block_size=32", "accuracy_level=4"])
    engine, prompts = OnnxEngine(str(tmp_path / "exported"), 16), prompts_of(101, 128)
    alone = [generate(engine, [prompt], COUNT)[0].tokens for prompt in prompts]
    assert [sequence.tokens for sequence in generate(engine, prompts, COUNT)] == alone
    assert [sequence.tokens for sequence in generate(engine, prompts, COUNT, late=4)] == alone


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_stored_type_is_exported_exactly(engines, dtype):
    import torch

    staged, _, ours = engines(dtype=getattr(torch, dtype))
    prompt = prompts_of(101, 128)[1]
    tokens, _ = reference(staged, prompt, COUNT)
    assert [generate(engine, [prompt], COUNT)[0].tokens for engine in ours] == [tokens] * len(ours)


@pytest.mark.parametrize("stored", ["equal", "different", "only the head"])
def test_tied_embeddings_are_those_that_transformers_takes(checkpoint, tmp_path, stored):
    """It ties what it finds equal, and leaves alone what it finds different."""
    import torch
    from safetensors.torch import load_file, save_file

    from steps.wrappers.engines.onnx_engine import OnnxEngine

    source = random_phi3(tmp_path / "source", checkpoint.directory, tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = torch.randn_like(embedding) if stored == "different" else embedding.clone()
    if stored == "only the head":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "exported").mkdir()
    export_to_onnx(source, tmp_path / "exported", "fp32", OPTIONS)
    prompt = prompts_of(101, 128)[1]
    tokens, _ = reference(source, prompt, COUNT)
    assert generate(OnnxEngine(str(tmp_path / "exported"), 4), [prompt], COUNT)[0].tokens == tokens


def test_an_export_ends_at_the_end_tokens_of_the_checkpoint(checkpoint, engines):
    """The builder would add the tokenizer's own."""
    staged, exported, _ = engines()
    assert ChatTokenizer(exported).end_tokens == ChatTokenizer(staged).end_tokens == {2}
    assert ChatTokenizer(checkpoint.directory).end_tokens != {2}


def test_an_export_has_the_tokenizer_of_the_checkpoint(engines):
    staged, exported, _ = engines()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        assert (exported / name).read_bytes() == (staged / name).read_bytes()


REFUSED = {
    "a small head": ({"hidden_size": 32}, r"must be multiples of 16, got 8 and 8\. Take another mode\."),
    "half a head": ({"partial_rotary_factor": 0.5}, r"must be multiples of 16, got 16 and 8\."),
    "an unknown activation": (
        {"hidden_act": "quick_gelu"},
        r"cannot be exported to ONNX \(NotImplementedError: The qu",
    ),
    "no window": ({"change": without(sliding_window=0)}, r"sliding_window in '.*' must be at least 1, got 0\."),
}


@pytest.mark.parametrize(("config", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_onnx_runtime_cannot_compute_is_refused_before_it_is_exported(engines, tmp_path, config, sentence):
    with pytest.raises(StepError, match=sentence):
        engines(**config)
    assert list((tmp_path / "exported").iterdir()) == []
