"""Let the model builder quantise one matrix after the other.

By itself it holds all weights in fp32 before it quantises them: 15 GB for Phi-3-mini, above the checkpoint's 7.6 GB.
Here its own method gets a graph of one matrix at a time, so the result is the same, and a matrix that is done is freed.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from onnx_ir import Graph, Model, Node, Value

# Is called with how many matrices are done, and with how many there are.
Report = Callable[[int, int], None]


@contextlib.contextmanager
def matrix_by_matrix(report: Report) -> Iterator[None]:
    """Have the builder quantise one matrix after the other as long as the block lasts."""
    from unittest.mock import patch

    # The class as the builder itself imports it: under its other name it would be another class.
    from onnxruntime_genai.models.builder import Model

    at_once = Model.to_nbits
    with patch.object(Model, "to_nbits", lambda builder: _quantized(builder, at_once, report)):
        yield


def _quantized(builder: Any, at_once: Callable[[Any], "Model"], report: Report) -> "Model":
    """Return the builder's graph with its matrices quantised by its own method `at_once`."""
    import onnx_ir

    whole = builder.model
    kinds = builder.quant_attrs["op_types_to_quantize"]
    nodes = [(node, weight) for node in whole.graph if node.op_type in kinds and (weight := _weight(node))]
    parts: dict[str, ModelProto] = {}
    try:
        for done, (node, weight) in enumerate(nodes):
            report(done, len(nodes))
            builder.model = _alone(whole, node, weight)
            if not any(use is not node for use, _ in weight.uses()):
                _forget(whole.graph, weight)
            parts[node.name] = onnx_ir.to_proto(at_once(builder))
    finally:
        builder.model = whole
    return onnx_ir.from_proto(_joined(onnx_ir.to_proto(whole), parts))


def _weight(node: "Node") -> "Value | None":
    """Return the constant that a node multiplies by or gathers from; None if there is none."""
    return next((value for value in node.inputs if value is not None and value.const_value is not None), None)


def _alone(whole: "Model", node: "Node", weight: "Value") -> "Model":
    """Return a graph that has only this node and its weight."""
    import onnx_ir

    def copied(value: "Value") -> "Value":
        return onnx_ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)

    inputs = [copied(value) for value in node.inputs if value is not None]
    outputs = [copied(value) for value in node.outputs]
    attributes = node.attributes.values()
    alone = onnx_ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name)
    graph = onnx_ir.Graph(
        [value for value in inputs if value.name != weight.name],
        outputs,
        nodes=[alone],
        initializers=[value for value in inputs if value.name == weight.name],
        opset_imports=dict(whole.graph.opset_imports),
        name=node.name,
    )
    return onnx_ir.Model(graph, ir_version=whole.ir_version)


def _forget(graph: "Graph", weight: "Value") -> None:
    """Leave only the name of a weight in a graph."""
    graph.initializers.pop(str(weight.name))
    weight.const_value = None


def _joined(whole: "ModelProto", parts: dict[str, "ModelProto"]) -> "ModelProto":
    """Return a model in which each node that was quantised alone is replaced by what it became."""
    nodes: list[NodeProto] = []
    for node in whole.graph.node:
        nodes += parts[node.name].graph.node if node.name in parts else [node]
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    named = {tensor.name for tensor in whole.graph.initializer}
    versions = {entry.domain: entry.version for entry in whole.opset_import}
    while parts:
        _, part = parts.popitem()
        whole.ir_version = max(whole.ir_version, part.ir_version)
        for entry in part.opset_import:
            versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
        whole.graph.initializer.extend(tensor for tensor in part.graph.initializer if tensor.name not in named)
    del whole.opset_import[:]
    for domain, version in versions.items():
        whole.opset_import.add(domain=domain, version=version)
    return whole
