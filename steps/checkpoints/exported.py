"""What a checkpoint in ONNX GenAI layout was exported to, by its graph; no weights are read."""

import json
import math
from collections import Counter
from pathlib import Path


def precision(directory: Path) -> str:
    """The numbers that the weights are kept in: int4, int8, fp32, fp16 …; raises FileNotFoundError."""
    import onnx

    graph = onnx.load(_decoder(directory), load_external_data=False).graph
    quantized = [node for node in graph.node if node.op_type == "MatMulNBits"]
    bits = {attribute.i for node in quantized for attribute in node.attribute if attribute.name == "bits"}
    if bits:
        return f"int{min(bits)}"
    sizes: Counter[int] = Counter()
    for tensor in graph.initializer:
        sizes[tensor.data_type] += math.prod(tensor.dims)
    kind = onnx.TensorProto.DataType.Name(sizes.most_common(1)[0][0]) if sizes else "no numbers"
    return {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}.get(kind, kind.lower())


def _decoder(directory: Path) -> Path:
    config = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
    return directory / config.get("model", {}).get("decoder", {}).get("filename", "model.onnx")
