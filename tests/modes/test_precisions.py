"""The kinds of quantised weights: every key reaches the graph, and a pruned head changes no answer."""

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel, QuantizedPrecision
from steps.errors import StepError
from steps.modes import get_mode
from tests.modes.random_phi3 import generate, random_phi3

PROMPTS = [list(range(8, 8 + length)) for length in (3, 3, 17, 30)]


@pytest.fixture(scope="module")
def phi3(checkpoint, tmp_path_factory):
    """A random checkpoint whose matrices have rows of an even number of blocks, with tied embeddings."""
    folder = tmp_path_factory.mktemp("phi3") / "phi3"
    random_phi3(folder, checkpoint.directory, intermediate_size=128, tie_word_embeddings=True)
    return resolve(FolderModel(name="phi3", path=str(folder)))


def _staged(phi3, *overrides):
    config = command_line.compose("build", ["mode=onnx", *overrides])
    return get_mode("onnx").stage(phi3, config)


def _graph(phi3, *overrides):
    """Return the nodes with quantised weights, with their attributes, and the shape of the logits."""
    import onnx

    with _staged(phi3, *overrides) as folder:
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        weights = (folder / "model.onnx.data").read_bytes()
    nodes = {node.name: node for node in graph.node if node.op_type == "MatMulNBits"}
    (logits,) = (entry for entry in graph.output if entry.name == "logits")
    return nodes, [axis.dim_value for axis in logits.type.tensor_type.shape.dim], weights


def _values(nodes, name):
    return {key: next(entry.i for entry in node.attribute if entry.name == name) for key, node in nodes.items()}


def _bits(nodes):
    return _values(nodes, "bits")


def test_a_mixed_precision_has_eight_bits_for_the_head_and_some_layers(phi3):
    plain, _, _ = _graph(phi3, "precision=int4")
    assert set(_bits(plain).values()) == {4}
    mixed, _, _ = _graph(phi3, "precision=int4_mixed")
    assert set(_bits(mixed).values()) == {4, 8}
    assert {bits for name, bits in _bits(mixed).items() if "lm_head" in name} == {8}
    last, _, _ = _graph(phi3, "precision=int4", "precision.matmul_mixed_precision=last_matmul:int8")
    assert [name for name, bits in _bits(last).items() if bits == 8] == [name for name in last if "lm_head" in name]


def test_int8_has_eight_bits_everywhere(phi3):
    nodes, _, _ = _graph(phi3, "precision=int8", "precision.block_size=64", "precision.accuracy_level=1")
    assert set(_bits(nodes).values()) == {8}
    assert set(_values(nodes, "block_size").values()) == {64}
    assert set(_values(nodes, "accuracy_level").values()) == {1}


def test_the_algorithm_decides_the_weights(phi3):
    weights = {name: _graph(phi3, "precision=int4", f"precision.algo_config={name}")[2] for name in ("rtn", "k_quant")}
    assert weights["rtn"] != weights["k_quant"]


@pytest.mark.parametrize(("is_symmetric", "zero_points"), [("true", set()), ("false", {True})])
def test_asymmetric_weights_have_zero_points(phi3, is_symmetric, zero_points):
    nodes, _, _ = _graph(phi3, "precision=int4", f"precision.is_symmetric={is_symmetric}")
    assert {bool(node.input[3]) for node in nodes.values() if len(node.input) > 3} - {False} == zero_points


def test_a_pruned_head_returns_one_row_of_logits_and_the_same_answers(phi3):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    answers = {}
    for pruned in ("true", "false"):
        choice = ["precision=int4", f"precision.prune_lm_head={pruned}"]
        assert (_graph(phi3, *choice)[1][1] == 1) == (pruned == "true")
        with _staged(phi3, *choice) as folder:
            together = generate(OnnxEngine(str(folder), 16), PROMPTS, 6, late=2)
            alone = [generate(OnnxEngine(str(folder), 16), [prompt], 6)[0] for prompt in PROMPTS]
        answers[pruned] = [sequence.tokens for sequence in together]
        assert answers[pruned] == [sequence.tokens for sequence in alone]
    assert answers["true"] == answers["false"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=int4_mixed", "precision.is_symmetric=false"],
        ["precision=int8", "precision.is_symmetric=false"],
        ["precision=int4", "precision.matmul_mixed_precision=last_matmul:int8"],
        ["precision=int4", "precision.matmul_mixed_precision='last_matmul:int8,mixed_layers:int8'"],
    ],
)
def test_weights_of_a_tied_embedding_load(phi3, overrides):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    with _staged(phi3, *overrides) as staged:
        assert generate(OnnxEngine(str(staged), 16), [[3, 4, 5]], 3)[0].tokens


def test_k_quant_of_an_odd_number_of_blocks_is_refused_with_what_to_give(checkpoint):
    with pytest.raises(StepError) as refusal:
        _staged(checkpoint, "precision=int4_mixed").__enter__()
    assert refusal.value.faults == (
        f"precision.algo_config=k_quant needs matrices with rows of an even number of blocks of 32 weights, and "
        f"'{checkpoint.directory}' has rows of 96: give precision.block_size=16, or precision.algo_config=rtn.",
    )
    with _staged(checkpoint, "precision=int4_mixed", "precision.block_size=16"):
        pass


def test_a_variant_of_before_these_keys_is_read_as_it_was_made():
    before = QuantizedPrecision(block_size=32, accuracy_level=4)
    assert (before.algo_config, before.matmul_mixed_precision) == ("default", "none")
    assert (before.is_symmetric, before.prune_lm_head) == (True, False)
