"""Matrices that are quantised one by one give the graph that the model builder makes of all at once."""

import contextlib

import pytest

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel
from steps.modes import onnx_export
from steps.modes.onnx import _builder_options
from tests.modes.random_phi3 import random_phi3

KINDS = {
    "plain": ["precision=int4"],
    "asymmetric": ["precision=int4", "precision.is_symmetric=false", "precision.block_size=64"],
    "rtn": ["precision=int4", "precision.algo_config=rtn"],
    "mixed": ["precision=int4_mixed"],
    "an 8-bit head": ["precision=int4", "precision.matmul_mixed_precision=last_matmul:int8"],
    "8 bits": ["precision=int8"],
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def phi3(request, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phi3") / "phi3"
    random_phi3(folder, checkpoint.directory, intermediate_size=128, tie_word_embeddings=request.param)
    return resolve(FolderModel(name="phi3", path=str(folder)))


def _export(phi3, overrides, folder):
    """Return the nodes of an export, which some kinds sort, its weights by name, and its other parts."""
    import onnx

    config = command_line.compose("build", ["mode=onnx", *overrides])
    folder.mkdir()
    onnx_export.export_to_onnx(phi3.directory, folder, config.precision.base, _builder_options(config.precision))
    model = onnx.load(folder / "model.onnx")
    weights = {tensor.name: (tensor.data_type, *tensor.dims, tensor.raw_data) for tensor in model.graph.initializer}
    nodes = sorted(node.SerializeToString(deterministic=True) for node in model.graph.node)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return nodes, weights, versions, model.ir_version, list(map(str, [*model.graph.input, *model.graph.output]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_gives_what_all_at_once_gives(phi3, kind, tmp_path, monkeypatch):
    one_by_one = _export(phi3, KINDS[kind], tmp_path / "one_by_one")
    monkeypatch.setattr(onnx_export, "matrix_by_matrix", lambda report: contextlib.nullcontext())
    assert one_by_one == _export(phi3, KINDS[kind], tmp_path / "at_once")


def test_each_matrix_is_reported(phi3, tmp_path, monkeypatch):
    reports = []

    @contextlib.contextmanager
    def shown():
        yield lambda done, total: reports.append((done, total))

    monkeypatch.setattr(onnx_export, "_shown", shown)
    nodes = _export(phi3, KINDS["plain"], tmp_path / "export")[0]
    total = sum(b"MatMulNBits" in node or b"GatherBlockQuantized" in node for node in nodes)
    assert reports[0][0] == 0
    assert [done for done, _ in reports] == list(range(len(reports)))
    assert {number for _, number in reports} == {len(reports)}
    assert total >= len(reports) > 4
