"""Write a checkpoint as a graph of OpenVINO, with weights of as many bits as a precision has."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.checkpoints.configuration import head_size, load_config
from steps.checkpoints.weights import check_weights
from steps.modes.openvino_graph import phi3_graph
from steps.output import suppress_output

if TYPE_CHECKING:
    from openvino import Model
    from transformers import Phi3Config

# OpenVINO would call the second one model.bin, which looks like a pickle.
GRAPH, WEIGHTS = "model.xml", "model.weights"
# How many weights of 4 bits share a scale.
GROUP = 32
# How many numbers of a row share one when they are rounded to 8 bits: more are faster, and have to divide every row.
ROW_GROUPS = (128, 64, 32)
# precision → how NNCF packs the weights; None leaves them as they are. Those of the embedding and the head get 8 bits
# in all others.
KINDS: dict[str, dict[str, Any] | None] = {
    "fp32": None,
    "int4": {"mode": "int4_sym", "ratio": 1.0, "group_size": GROUP, "awq": True},
    "int4_mixed": {"mode": "int4_sym", "ratio": 0.5, "group_size": GROUP, "awq": True},
    "int8": {"mode": "int8_sym"},
}


def export_to_openvino(checkpoint: Path, target: Path, precision: str) -> None:
    """Write the graph and the weights of a checkpoint in Hugging Face layout to a folder.

    Args:
        checkpoint: Its folder.
        target: Where to write GRAPH and WEIGHTS.
        precision: A key of KINDS.

    Raises:
        StepError: The weights do not fit the configuration, or OpenVINO has no such activation.
    """
    import openvino

    from steps.wrappers.engines.paged_attention import CACHE_TYPE, ROW_GROUP, SHAPE

    check_weights(checkpoint)
    kind, config = KINDS[precision], load_config(checkpoint)
    with phi3_graph(checkpoint, config) as model:
        packed = _packed(model, **kind) if kind else model
        # In 8 bits, keys and values take about 30 % of the memory.
        packed.set_rt_info("u8" if kind else "f32", [SHAPE, CACHE_TYPE])
        packed.set_rt_info(str(_row_group(config, kind) if kind else 0), [SHAPE, ROW_GROUP])
        try:
            openvino.save_model(packed, target / GRAPH, compress_to_fp16=False)
        except RuntimeError as error:
            if "iostream" in str(error):
                # It does not say why it cannot write, and the system does.
                (target / WEIGHTS).write_bytes(bytes(2**20))
            raise
    (target / GRAPH).with_suffix(".bin").rename(target / WEIGHTS)


def _row_group(config: Phi3Config, kind: dict[str, Any]) -> int:
    """Return how many numbers of a row share a scale. With weights of 4 bits no more than of those."""
    heads = config.num_attention_heads * head_size(config)
    rows = math.gcd(config.hidden_size, config.intermediate_size, heads)
    fitting = [group for group in ROW_GROUPS if rows % group == 0 and group <= kind.get("group_size", group)]
    return max(fitting, default=GROUP)


def _packed(model: Model, mode: str, **settings: Any) -> Model:
    """Return a graph whose matrices have few bits."""
    # It would send events over the network.
    os.environ.setdefault("NNCF_CI", "1")
    with suppress_output():
        import nncf

        # Rows that no group divides get smaller groups, or 8 bits.
        fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        advanced = {"advanced_parameters": fallback} if "group_size" in settings else {}
        packed: Model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(mode), **settings, **advanced)
    return packed
