"""Weights that do not fit their configuration, and checkpoints that no mode can use, are refused by name."""

import json

import pytest

from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.weights import check_weights
from steps.config.schema import FolderModel
from steps.errors import StepError
from tests.modes.random_phi3 import edit_json, random_phi3, without

PREFIX = "base_model.model."


@pytest.fixture
def source(checkpoint, tmp_path):
    return random_phi3(tmp_path / "source", checkpoint.directory)


def _change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def _shard(folder, lost=()):
    """Split the weights into two files and an index, which keeps listing what is lost."""
    from safetensors.torch import load_file, save_file

    tensors, files = load_file(folder / "model.safetensors"), ("model-1.safetensors", "model-2.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: files[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in files:
        shard = {name: tensors[name] for name, place in places.items() if place == file and name not in lost}
        save_file(shard, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _as(dtype):
    import torch

    return lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"].to(getattr(torch, dtype))}


def _of(tensors, name):
    return tensors[f"model.layers.{name}.weight"]


def _with_first_value(tensor, value):
    changed = tensor.clone()
    changed[0, 0] = float(value)
    return changed


UNFIT = {
    "a prefix before every name": (
        lambda tensors: {PREFIX + name: tensor for name, tensor in tensors.items()},
        [
            "asks for 15 tensors: 15 missing (lm_head.weight, model.embed_tokens.weight, "
            "model.layers.0.input_layernorm.weight and 12 more)",
            f"15 unexpected ({PREFIX}lm_head.weight, ",
        ],
    ),
    "no head": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"},
        ["1 missing (lm_head.weight)"],
    ),
    "a bias": (
        lambda tensors: tensors | {"model.layers.0.self_attn.qkv_proj.bias": tensors["model.norm.weight"].clone()},
        ["1 unexpected (model.layers.0.self_attn.qkv_proj.bias)"],
    ),
    "another vocabulary": (
        lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"][:100]},
        ["1 misshapen (lm_head.weight [100, 64] instead of [1200, 64])"],
    ),
    "transposed": (
        lambda tensors: tensors | {"model.layers.0.mlp.down_proj.weight": _of(tensors, "0.mlp.down_proj").T},
        ["1 misshapen (model.layers.0.mlp.down_proj.weight [96, 64] instead of [64, 96])"],
    ),
    "a layer too many": (
        lambda tensors: tensors | {"model.layers.2.mlp.down_proj.weight": _of(tensors, "0.mlp.down_proj").clone()},
        ["1 unexpected (model.layers.2.mlp.down_proj.weight)"],
    ),
    "separate projections, as Llama has them": (
        lambda tensors: {name.replace("qkv_proj", "q_proj"): tensor for name, tensor in tensors.items()},
        ["2 missing (model.layers.0.self_attn.qkv_proj.weight, ", "2 unexpected (model.layers.0.self_attn.q_proj.we"],
    ),
    "one value that is not a number": (
        lambda tensors: tensors | {"lm_head.weight": _with_first_value(tensors["lm_head.weight"], "nan")},
        ["1 with values that are not finite numbers (lm_head.weight)"],
    ),
    "an infinite value": (
        lambda tensors: tensors | {"lm_head.weight": _with_first_value(tensors["lm_head.weight"], "-inf")},
        ["1 with values that are not finite numbers (lm_head.weight)"],
    ),
    "one tensor under two names": (
        lambda tensors: tensors | {"norm.weight": tensors["model.norm.weight"].clone()},
        ["1 stored more than once (model.norm.weight)"],
    ),
    "integers": (_as("int8"), ["1 stored as none of F64, F32, F16, BF16 (lm_head.weight I8)"]),
    "eight bits": (_as("float8_e4m3fn"), ["(lm_head.weight F8_E4M3)"]),
}


@pytest.mark.parametrize(("change", "words"), UNFIT.values(), ids=UNFIT)
def test_weights_that_do_not_fit_are_named(source, change, words):
    _change_weights(source, change)
    with pytest.raises(StepError, match="do not fit its config") as refusal:
        check_weights(source)
    (sentence,) = refusal.value.faults
    assert all(word in sentence for word in words), sentence


FIT = {
    "as they are saved": lambda tensors: tensors,
    "without the name of the model": lambda tensors: {
        name.removeprefix("model."): tensor for name, tensor in tensors.items()
    },
    "with a buffer of old checkpoints": lambda tensors: (
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": tensors["model.norm.weight"].clone()}
    ),
    "in half precision": _as("float16"),
}


@pytest.mark.parametrize("change", FIT.values(), ids=FIT)
def test_what_transformers_loads_whole_fits(source, change):
    _change_weights(source, change)
    check_weights(source)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_of_two_tied_embeddings_is_enough(checkpoint, tmp_path, lost):
    folder = random_phi3(tmp_path / "tied", checkpoint.directory, tie_word_embeddings=True)
    _change_weights(
        folder,
        lambda tensors: {
            **{name: tensor for name, tensor in tensors.items() if name != "model.embed_tokens.weight"},
            ({"lm_head.weight", "model.embed_tokens.weight"} - {lost}).pop(): tensors["model.embed_tokens.weight"],
        },
    )
    check_weights(folder)
    _change_weights(
        folder, lambda tensors: {name: entry for name, entry in tensors.items() if name.startswith("model.l")}
    )
    with pytest.raises(
        StepError, match=r"3 missing \(lm_head\.weight, model\.embed_tokens\.weight, model\.norm\.weight\)"
    ):
        check_weights(folder)


def test_shards_are_read_together(source):
    _shard(source)
    check_weights(source)


def test_a_tensor_that_only_the_index_lists_is_missing(source):
    _shard(source, lost=["model.norm.weight"])
    with pytest.raises(StepError, match=r"1 missing \(model\.norm\.weight\)"):
        check_weights(source)


def test_a_tensor_in_two_shards_is_refused(source):
    """transformers and the model builder take the last one, whatever the index says."""
    from safetensors.torch import load_file, save_file

    _shard(source)
    first, second = (load_file(source / f"model-{number}.safetensors") for number in (1, 2))
    save_file(second | {"lm_head.weight": first["lm_head.weight"] * 2}, source / "model-2.safetensors")
    with pytest.raises(StepError, match=r": 1 stored more than once \(lm_head\.weight\)\."):
        check_weights(source)


def test_weights_that_transformers_would_not_find_are_refused(source):
    (source / "model.safetensors").rename(source / "weights.safetensors")
    with pytest.raises(StepError, match=r"in model\.safetensors or list them in .*, got weights\.safetensors\."):
        check_weights(source)


INVALID = {
    "words for a number": (without(hidden_size="x"), "expected int, got str"),
    "padding outside of the vocabulary": (without(pad_token_id=32000), "Padding_idx must be within num_embeddings"),
    "rotary embedding": (without(rope_parameters={"rope_type": "linear", "factor": 2.0}), "got linear"),
    "activation": (without(hidden_act="nope"), "KeyError: nope"),
    "no heads": (without(num_attention_heads=0), "ZeroDivisionError"),
}


def test_a_rotary_embedding_without_a_base_is_refused(source):
    edit_json(source / "config.json", without("rope_parameters", rope_theta=0))
    with pytest.raises(StepError, match=r"rope_theta in '.*config\.json' must be above 0, got 0\."):
        check_weights(source)


@pytest.mark.parametrize(("change", "words"), INVALID.values(), ids=INVALID)
def test_an_invalid_configuration_is_refused_in_a_sentence(source, change, words):
    edit_json(source / "config.json", change)
    with pytest.raises(StepError, match=r"config\.json' is not a valid configuration \(") as refusal:
        check_weights(source)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


UNSUPPORTED = {
    "gptq": (without(quantization_config={"quant_method": "gptq", "bits": 4}), r"are quantised \(gptq\)"),
    "awq": (without(quantization_config={"quant_method": "awq"}), r"are quantised \(awq\)"),
    "bitsandbytes": (without(quantization_config={"load_in_4bit": True}), r"are quantised \(quantization_config\)"),
    "compressed": (without(compression_config={"quant_method": "sparse"}), r"are quantised \(sparse\)"),
    "nothing": (without(quantization_config={}), r"are quantised \(quantization_config\)"),
    "llama": (without(model_type="llama"), "has model_type 'llama' in its config.json: only 'phi3' is supported"),
    "no type": (without("model_type"), "has model_type None"),
}


@pytest.mark.parametrize(("change", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_checkpoint_that_no_mode_can_use_is_refused(source, change, words):
    edit_json(source / "config.json", change)
    with pytest.raises(StepError, match=words):
        resolve(FolderModel(name="local", path=str(source)))


@pytest.mark.parametrize("has_model", [False, True])
def test_an_adapter_is_refused_alone_or_next_to_a_model(source, has_model):
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "microsoft/Phi-3-mini-4k-instruct"}')
    if not has_model:
        (source / "config.json").unlink()
        (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    with pytest.raises(
        StepError, match=r"holds an adapter \(adapter_config\.json\): merge it into its base model first"
    ):
        resolve(FolderModel(name="local", path=str(source)))
