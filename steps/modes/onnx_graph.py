"""A folder in ONNX GenAI layout: whether the engines can run it, its precision, and two corrections of its graph.

Reads genai_config.json and the graph without its weights.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.checkpoints.configuration import MODEL_TYPE
from steps.errors import reason

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

GENAI_CONFIG = "genai_config.json"
# The only attention that reads and writes its key-value cache in place, as the CPU engine needs it.
ATTENTION = "GroupQueryAttention"
# Its attributes: how many tokens it attends to (-1 for all), and whether its cache holds only those.
WINDOW, WINDOWED_CACHE = "local_window_size", "sliding_window_cache"
# The output of the node that chooses between the two rotary embeddings of LongRoPE.
ROTARY_CACHE = "cos_cache"


def read_genai_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of a folder in ONNX GenAI layout."""
    config: dict[str, Any] = json.loads((directory / GENAI_CONFIG).read_text(encoding="utf-8"))
    return config


def folder_faults(directory: Path, on_gpu: bool) -> list[str]:
    """Return why no engine can run a folder: another kind of model, files that are not there, an unfit graph."""
    try:
        return list(_folder_faults(directory, read_genai_config(directory)["model"], on_gpu))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"'{directory}/{GENAI_CONFIG}' is not a valid configuration ({reason(error)})."]


def _folder_faults(directory: Path, model: dict[str, Any], on_gpu: bool) -> Iterator[str]:
    decoder, name = model["decoder"], model["decoder"].get("filename")
    parts = [*sorted(part for part in model if isinstance(model[part], dict)), *({"pipeline"} & decoder.keys())]
    if model.get("type") != MODEL_TYPE or parts != ["decoder"]:
        yield (
            f"'{directory}/{GENAI_CONFIG}' describes a model of type {model.get('type')!r} with the parts "
            f"{', '.join(parts)}: only type {MODEL_TYPE!r} with one part, a text decoder in one graph, is supported."
        )
        return
    if Path(name or "").name != name or not (directory / name).is_file():
        yield f"'{directory}/{GENAI_CONFIG}' names the graph {name!r}, and the folder has no such file."
        return
    if int(model["context_length"]) < 1 or int(model["vocab_size"]) < 1:
        yield f"'{directory}/{GENAI_CONFIG}' must have a context_length and a vocab_size of at least 1."
    try:
        graph = load_graph(directory).graph
    except Exception as error:  # protobuf has errors of its own
        yield f"'{directory}/{name}' is not a graph that onnx can read ({reason(error)})."
        return
    yield from _weights_faults(directory, graph)
    if not on_gpu:
        yield from _cache_faults(directory, graph, decoder)


def load_graph(directory: Path) -> "ModelProto":
    """Return the decoder's graph without its weights."""
    import onnx

    return onnx.load(_graph_file(directory), load_external_data=False)


def _graph_file(directory: Path) -> Path:
    return directory / str(read_genai_config(directory)["model"]["decoder"]["filename"])


def _weights_faults(directory: Path, graph: "GraphProto") -> Iterator[str]:
    """Yield the files of weights that are missing or cut short."""
    needed: Counter[str] = Counter()
    for tensor in graph.initializer:
        entry = {pair.key: pair.value for pair in tensor.external_data}
        if name := entry.get("location"):
            needed[name] = max(needed[name], int(entry.get("offset", 0)) + int(entry.get("length", 0)))
    for name, size in needed.items():
        file = directory / name
        if not file.is_file():
            yield f"The graph in '{directory}' has its weights in {name}, and the folder has no such file."
        elif file.stat().st_size < size:
            yield f"{file} is cut short: the graph reads {size} bytes, it has {file.stat().st_size}."


def _cache_faults(directory: Path, graph: "GraphProto", decoder: dict[str, Any]) -> Iterator[str]:
    """Yield why the CPU engine cannot keep the graph's key-value cache."""
    names, outputs = decoder.get("inputs", {}), decoder.get("outputs", {})
    layers = range(int(decoder.get("num_hidden_layers", 0)))
    past = {names[key] % layer for key in ("past_key_names", "past_value_names") if key in names for layer in layers}
    readers = [node for node in graph.node if past.intersection(node.input)]
    operators = sorted({node.op_type for node in readers})
    is_windowed = any(_integer(node, WINDOWED_CACHE) for node in readers)
    if operators != [ATTENTION] or is_windowed or "input_ids" not in names or "logits" not in outputs:
        yield (
            f"The graph in '{directory}' cannot be batched on a CPU: it must turn input_ids into logits and keep all "
            f"keys and values for {ATTENTION}, got {', '.join(operators) or 'no such cache'} with {', '.join(names)}. "
            "Export it for the execution provider cpu, with windowed_kv_cache=false."
        )


def exported_precision(directory: Path) -> str:
    """Return the precision of a folder by its graph, such as int4, int8, fp32 or fp16."""
    import onnx

    graph = load_graph(directory).graph
    bits = {_integer(node, "bits") for node in graph.node if node.op_type == "MatMulNBits"}
    if bits:
        return f"int{min(bits)}"
    sizes: Counter[int] = Counter()
    for tensor in graph.initializer:
        sizes[tensor.data_type] += math.prod(tensor.dims)
    kind: str = onnx.TensorProto.DataType.Name(sizes.most_common(1)[0][0]) if sizes else "no numbers"
    return {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}.get(kind, kind.lower())


def correct_graph(directory: Path) -> None:
    """Correct what the model builder leaves out of a Phi-3: its sliding window, and the limit of LongRoPE.

    The graph changes to LongRoPE's long factors when a batch gets longer than the context that the model was trained
    with. Everything cached until then would have to be computed again, so the context ends there.
    """
    model, config = load_graph(directory), read_genai_config(directory)
    nodes = [node for node in model.graph.node if node.op_type == ATTENTION]
    # The builder notes the window here, without a layer that has it.
    section = config["model"]["decoder"].get("sliding_window", {"layers": nodes})
    if not section["layers"] and all(_integer(node, WINDOW) <= 0 for node in nodes):
        for node in nodes:
            _set_integer(node, WINDOW, section["window_size"])
        del config["model"]["decoder"]["sliding_window"]
        _replace(_graph_file(directory), model.SerializeToString())
    context = config["model"]["context_length"]
    config["model"]["context_length"] = min([context, *_rotary_lengths(model.graph)])
    _replace(directory / GENAI_CONFIG, json.dumps(config, indent=4).encode())


def _rotary_lengths(graph: "GraphProto") -> Iterator[int]:
    """Yield the lengths of the two rotary embeddings that a graph chooses from; nothing if it has only one."""
    for node in graph.node:
        if node.op_type == "If" and ROTARY_CACHE in node.output:
            for attribute in node.attribute:
                yield from (constant.attribute[0].t.dims[0] for constant in attribute.g.node)


def _replace(file: Path, content: bytes) -> None:
    """Write a file anew, never through a link into the checkpoint."""
    file.unlink()
    file.write_bytes(content)


def _set_integer(node: "NodeProto", name: str, value: int) -> None:
    """Set an integer attribute of a node."""
    import onnx

    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _integer(node: "NodeProto", name: str) -> int:
    """Return an integer attribute of a node; 0 if it has none."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
