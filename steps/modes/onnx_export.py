"""Export a checkpoint with ONNX Runtime GenAI's model builder, so that the graph computes what transformers computes.

By itself the builder ignores Phi-3's sliding window, reads only one form of a LongRoPE configuration, and adds end
tokens. It therefore gets a configuration in the form that it reads, and its result is corrected.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from steps.checkpoints.configuration import attention_scaling, head_size, load_config
from steps.checkpoints.disk_space import DISK_FULL
from steps.checkpoints.staging import link_checkpoint
from steps.checkpoints.weights import EMBEDDING, HEAD, check_weights, stored_tensors
from steps.errors import StepError, reason
from steps.modes.onnx_graph import GENAI_CONFIG, correct_graph, read_genai_config
from steps.modes.onnx_quantization import Report, matrix_by_matrix
from steps.output import activity, suppress_output
from steps.wrappers.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from transformers import Phi3Config

# ONNX Runtime computes attention only for heads of which both the size and the rotated part are multiples of this.
HEAD_STEP = 16


def export_to_onnx(checkpoint: Path, target: Path, precision: str, options: list[str]) -> None:
    """Export a checkpoint in Hugging Face layout to an empty folder, with the checkpoint's own tokenizer files.

    Args:
        checkpoint: Its folder, which stays as it is.
        target: The empty folder.
        precision: fp32, int4 or int8.
        options: The builder's options, each KEY=VALUE.

    Raises:
        StepError: The weights do not fit the configuration, or the builder or ONNX Runtime cannot take it.
    """
    check_weights(checkpoint)
    config = load_config(checkpoint)
    _check_heads(checkpoint, config)
    with TemporaryDirectory(prefix="phi3-") as temporary:
        source = link_checkpoint(checkpoint, Path(temporary) / "checkpoint")
        own_files = {file.name: file.read_bytes() for file in source.iterdir() if ".safetensors" not in file.name}
        _write_builder_config(config, source)
        _build(source, target, precision, options)
        _take_end_tokens(source, target)
    for name, content in own_files.items():
        (target / name).write_bytes(content)
    correct_graph(target)


def _check_heads(checkpoint: Path, config: "Phi3Config") -> None:
    """Raise StepError for heads that ONNX Runtime would refuse, and only when the graph runs."""
    size = head_size(config)
    rotated = int(size * _rope(config)["partial_rotary_factor"])
    if size % HEAD_STEP or rotated % HEAD_STEP:
        raise StepError(
            f"ONNX Runtime cannot compute '{checkpoint}': the size of a head and its rotated part must be multiples of "
            f"{HEAD_STEP}, got {size} and {rotated}. Take another mode."
        )


def _write_builder_config(own: "Phi3Config", folder: Path) -> None:
    """Replace config.json by one that the builder understands as transformers understands the checkpoint's own."""
    # No other keys: the builder reads many, for other architectures, that Phi-3 ignores.
    keys = (*type(own).__annotations__, "head_dim")
    config = type(own)(**{key: deepcopy(getattr(own, key)) for key in keys if hasattr(own, key)})
    context = config.max_position_embeddings
    if (rope := _rope(own))["rope_type"] == "longrope":
        context = min(context, config.original_max_position_embeddings)
        scaling = attention_scaling(own)
        config.rope_parameters = rope | {"type": "longrope", "short_mscale": scaling, "long_mscale": scaling}
        # The builder knows LongRoPE by two lengths that differ. `correct_graph` ends the context at the shorter one.
        config.max_position_embeddings = context + 1
    config.original_max_position_embeddings = context
    config.tie_word_embeddings = config.tie_word_embeddings and not _has_two_embeddings(folder)
    config.architectures = ["Phi3ForCausalLM"]
    # Never through the link into the checkpoint.
    (folder / "config.json").unlink()
    config.save_pretrained(folder)


def _rope(config: "Phi3Config") -> dict[str, Any]:
    """Return the parameters of the rotary embedding. transformers fills in the defaults."""
    return dict(config.rope_parameters or {})


def _has_two_embeddings(folder: Path) -> bool:
    """Return True if the files hold two different embeddings. transformers then leaves them untied."""
    from safetensors import safe_open

    stored = stored_tensors(folder)
    if not {EMBEDDING, HEAD} <= stored.keys():
        return False
    pair = []
    for tensor in (stored[EMBEDDING], stored[HEAD]):
        with safe_open(tensor.file, framework="pt") as opened:
            pair.append(opened.get_tensor(tensor.name))
    return not bool(pair[0].equal(pair[1]))


def _build(source: Path, target: Path, precision: str, options: list[str]) -> None:
    """Run the model builder. It raises every kind of error, some of which would pass for errors of the file system."""
    try:
        with _shown() as report, suppress_output(), TemporaryDirectory(prefix="phi3-") as cache:
            from onnxruntime_genai.models import builder

            arguments = ("", str(source), str(target), precision, "cpu", cache)
            with matrix_by_matrix(report):
                builder.create_model(*arguments, **builder.parse_extra_options(*arguments, options))
    except Exception as error:
        if isinstance(error, MemoryError) or DISK_FULL.search(str(error)):
            raise
        raise StepError(f"The checkpoint cannot be exported to ONNX ({reason(error)}): take another mode.") from error


@contextlib.contextmanager
def _shown() -> Iterator[Report]:
    """Yield what shows how many matrices are quantised: a bar on a terminal, words for the signs of life elsewhere."""
    from tqdm import tqdm

    # The terminal itself: the builder's output is hidden. disable=None: no bar if it is none.
    with activity("exporting to ONNX") as doing, tqdm(desc="quantising", file=sys.stderr, disable=None) as bar:

        def report(done: int, total: int) -> None:
            doing.words = f"exporting to ONNX: {done} of {total} matrices quantised"
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _take_end_tokens(source: Path, target: Path) -> None:
    """Let the graph's configuration have the checkpoint's end tokens, and no more."""
    config = read_genai_config(target)
    if tokens := ChatTokenizer(source).end_tokens:
        config["model"]["eos_token_id"] = sorted(tokens)
    (target / GENAI_CONFIG).write_text(json.dumps(config, indent=4), encoding="utf-8")
