"""A checkpoint as a graph of OpenVINO that computes what transformers computes.

In: tokens of one text, their positions, and after which of them logits are wanted. Out: these logits. The attention is
a plain one, over this text only. The engine puts paged attention in its place, which OpenVINO cannot store in a file
(wrappers/engines/paged_attention.py). So queries, keys, values and the result of each attention have names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.checkpoints.configuration import head_size, rotary_embedding
from steps.checkpoints.weights import EMBEDDING, HEAD, stored_tensors
from steps.errors import StepError

if TYPE_CHECKING:
    from openvino import Model
    from transformers import Phi3Config

# hidden_act → the operator of OpenVINO, and its arguments.
ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "silu": ("swish", ()),
    "swish": ("swish", ()),
    "relu": ("relu", ()),
    "gelu": ("gelu", ("erf",)),
    "gelu_new": ("gelu", ("tanh",)),
    "gelu_pytorch_tanh": ("gelu", ("tanh",)),
}
# Types that are written as they are stored. The others are written in fp32.
SHORT_TYPES = {"F16": "f16", "BF16": "bf16"}


@contextlib.contextmanager
def phi3_graph(checkpoint: Path, config: Phi3Config) -> Iterator[Model]:
    """Yield the graph of a checkpoint in Hugging Face layout. Its weights are there as long as the block lasts.

    Args:
        checkpoint: Its folder.
        config: Its configuration.

    Raises:
        StepError: OpenVINO has no such activation.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise StepError(
            f"OpenVINO cannot compute '{checkpoint}': hidden_act must be {' or '.join(ACTIVATIONS)}, got "
            f"{config.hidden_act!r}. Take another mode."
        )
    graph = _Graph(checkpoint, config)
    yield graph.whole()


class _Graph:
    """The parts of a graph. Rows are tokens, and columns are what the model has for each."""

    def __init__(self, checkpoint: Path, config: Phi3Config) -> None:
        from openvino import opset13

        self._op: Any = opset13
        self._config, self._stored = config, stored_tensors(checkpoint)
        self._heads = config.num_attention_heads
        self._key_heads = config.num_key_value_heads or self._heads
        self._size = head_size(config)
        # The memory of the weights, which OpenVINO only refers to.
        self._memory: list[Any] = []

    def whole(self) -> Model:
        """Return the whole graph."""
        import openvino

        from steps.wrappers.engines.paged_attention import SHAPE, Shape

        op, config = self._op, self._config
        ids, positions, wanted = (_input(op, name) for name in ("input_ids", "position_ids", "wanted"))
        embedding = self._weight(EMBEDDING if EMBEDDING in self._stored else HEAD)
        is_tied = config.tie_word_embeddings or HEAD not in self._stored
        hidden = op.gather(embedding, ids, self._number(0))
        rotation = self._rotation(positions)
        for layer in range(config.num_hidden_layers):
            hidden = self._layer(f"model.layers.{layer}", layer, hidden, rotation)
        last = self._norm(op.gather(hidden, wanted, self._number(0)), "model.norm")
        logits = op.matmul(last, embedding if is_tied else self._weight(HEAD), False, True)
        logits.output(0).set_names({"logits"})
        model = openvino.Model([op.result(logits)], [ids, positions, wanted], "phi3")
        shape = Shape(self._key_heads, self._size, config.sliding_window or 0)
        for key, value in shape._asdict().items():
            model.set_rt_info(str(value), [SHAPE, key])
        return model

    def _layer(self, name: str, layer: int, hidden: Any, rotation: tuple[Any, Any]) -> Any:
        """Return what a layer makes of its input [tokens, hidden]."""
        op, size = self._op, self._size
        projected = self._linear(self._norm(hidden, f"{name}.input_layernorm"), f"{name}.self_attn.qkv_proj")
        widths = [self._heads * size, self._key_heads * size, self._key_heads * size]
        queries, keys, values = op.variadic_split(projected, self._number(1), self._numbers(widths)).outputs()
        queries = self._rotated(queries, self._heads, rotation)
        keys = self._rotated(keys, self._key_heads, rotation)
        attended = self._attention(queries, keys, values)
        named = {"query": queries, "key": keys, "value": values, "attention": attended}
        for role, output in named.items():
            output.set_names({f"{role}.{layer}"})
        hidden = op.add(hidden, self._linear(attended, f"{name}.self_attn.o_proj"))
        widened = self._linear(self._norm(hidden, f"{name}.post_attention_layernorm"), f"{name}.mlp.gate_up_proj")
        gate, up = op.split(widened, self._number(1), 2).outputs()
        activation, arguments = ACTIVATIONS[self._config.hidden_act]
        gated = op.multiply(getattr(op, activation)(gate, *arguments), up)
        return op.add(hidden, self._linear(gated, f"{name}.mlp.down_proj"))

    def _attention(self, queries: Any, keys: Any, values: Any) -> Any:
        """Return what each token takes from those before it [tokens, heads x size]. Several heads share keys."""
        op, shared = self._op, self._heads // self._key_heads
        apart = [
            op.transpose(
                op.reshape(output, self._numbers([-1, self._key_heads, count, self._size]), False),
                self._numbers([1, 2, 0, 3]),
            )
            for output, count in ((queries, shared), (keys, 1), (values, 1))
        ]
        attended = op.scaled_dot_product_attention(*apart, causal=True)
        together = op.transpose(attended, self._numbers([2, 0, 1, 3]))
        return op.reshape(together, self._numbers([-1, self._heads * self._size]), False).output(0)

    def _rotation(self, positions: Any) -> tuple[Any, Any]:
        """Return the cosines and sines of the rotary embedding [tokens, 1, rotated]."""
        op, (frequencies, scaling) = self._op, rotary_embedding(self._config)
        column = op.convert(op.reshape(positions, self._numbers([-1, 1, 1]), False), "f32")
        half = op.multiply(column, op.constant(frequencies[None, None]))
        angles = op.concat([half, half], 2)
        return tuple(op.multiply(wave(angles), self._float(scaling)) for wave in (op.cos, op.sin))

    def _rotated(self, projected: Any, heads: int, rotation: tuple[Any, Any]) -> Any:
        """Return queries or keys [tokens, heads x size], turned by their positions."""
        op, (cosines, sines) = self._op, rotation
        apart = op.reshape(projected, self._numbers([-1, heads, self._size]), False).output(0)
        rotated = int(cosines.get_output_partial_shape(0)[2].get_length())
        rest = []
        if rotated < self._size:
            widths = self._numbers([rotated, self._size - rotated])
            apart, *rest = op.variadic_split(apart, self._number(2), widths).outputs()
        # In this form OpenVINO knows it as one operator.
        first, second = op.variadic_split(apart, self._number(2), self._numbers([rotated // 2] * 2)).outputs()
        turned = op.concat([op.multiply(second, self._float(-1.0)), first], -1)
        whole = op.add(op.multiply(apart, cosines), op.multiply(turned, sines))
        if rest:
            whole = op.concat([whole, *rest], 2)
        return op.reshape(whole, self._numbers([-1, heads * self._size]), False).output(0)

    def _norm(self, hidden: Any, name: str) -> Any:
        op = self._op
        mean = op.reduce_mean(op.power(hidden, self._float(2.0)), self._numbers([-1]), True)
        scale = op.divide(self._float(1.0), op.sqrt(op.add(mean, self._float(self._config.rms_norm_eps))))
        return op.multiply(op.multiply(hidden, scale), self._weight(f"{name}.weight"))

    def _linear(self, hidden: Any, name: str) -> Any:
        return self._op.matmul(hidden, self._weight(f"{name}.weight"), False, True)

    def _weight(self, name: str) -> Any:
        """Return a tensor of the checkpoint in fp32; the constant that it is made from has the type that is stored."""
        import openvino
        import torch
        from safetensors import safe_open

        tensor = self._stored[name]
        with safe_open(tensor.file, "pt") as weights:
            values = weights.get_tensor(tensor.name)
        is_short = tensor.dtype in SHORT_TYPES and values.dim() > 1
        kind = getattr(openvino.Type, SHORT_TYPES[tensor.dtype] if is_short else "f32")
        array = values.view(torch.uint16).numpy() if is_short else values.float().numpy()
        self._memory.append(array)
        constant = self._op.constant(openvino.Tensor(array, openvino.Shape(tensor.shape), kind))
        return self._op.convert(constant, "f32") if is_short else constant

    def _number(self, value: int) -> Any:
        import numpy as np

        return self._op.constant(np.int64(value))

    def _numbers(self, values: list[int]) -> Any:
        import numpy as np

        return self._op.constant(np.array(values, dtype=np.int64))

    def _float(self, value: float) -> Any:
        import numpy as np

        return self._op.constant(np.float32(value))


def _input(op: Any, name: str) -> Any:
    import numpy as np

    node = op.parameter([-1], np.int64, name)
    node.output(0).set_names({name})
    return node
