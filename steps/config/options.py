"""The keys of the options that have keys of their own: where a checkpoint comes from, and the precision of its weights.

`schema.py` has all the other keys.
"""

from dataclasses import dataclass

from steps.config.keys import MISSING, key

# Which matrices may have 8 bits where the others have 4.
MIXED = ("none", "last_matmul:int8", "mixed_layers:int8", "last_matmul:int8,mixed_layers:int8")


@dataclass
class Model:
    """Where the checkpoint comes from. Each source has its own keys."""

    name: str = key(plain_name=True)
    source: str = MISSING


@dataclass
class MiniatureModel(Model):
    """The miniature, trained on the spot from `seed`."""

    source: str = key("miniature", one_of=("miniature",))
    seed: int = key(at_least=0)


@dataclass
class Smollm2Model(Model):
    """SmolLM2-135M-Instruct from an installed package."""

    source: str = key("smollm2", one_of=("smollm2",))


@dataclass
class HubModel(Model):
    """A hub repository at a revision: a commit, a tag or a branch. Without one it is the main branch.

    `subfolder` is the checkpoint's folder in the repository. `exported` is the precision of a checkpoint that is in
    ONNX GenAI layout already; null for weights in Hugging Face layout. `long_context` takes the whole context of a
    checkpoint with LongRoPE, with its long factors for every prompt.
    """

    source: str = key("hub", one_of=("hub",))
    repository: str | None = key(needed=True)
    revision: str | None = None
    subfolder: str | None = None
    exported: str | None = None
    long_context: bool = False


@dataclass
class FolderModel(Model):
    """A folder on this machine, in Hugging Face or ONNX GenAI layout. `long_context` is as for a hub repository."""

    source: str = key("folder", one_of=("folder",))
    path: str | None = key(free_text=True, is_path=True, needed=True)
    long_context: bool = False


@dataclass
class Precision:
    """The numeric format of the weights."""

    name: str = key(one_of=("fp32", "bf16"))


@dataclass
class QuantizedPrecision(Precision):
    """Weights as blocks of 4-bit or 8-bit integers, as ONNX Runtime GenAI's model builder makes them.

    The defaults are how `int4` was made before these keys were there. `matmul_mixed_precision` names the matrices that
    have more bits than the others. `prune_lm_head` computes the logits of a prompt's last token only.
    """

    name: str = key("int4", one_of=("int4", "int4_mixed", "int8"))
    block_size: int = key(one_of=(16, 32, 64, 128, 256))
    accuracy_level: int = key(at_least=0, at_most=4)
    algo_config: str = key("default", one_of=("default", "rtn", "k_quant"))
    matmul_mixed_precision: str = key("none", free_text=True, one_of=MIXED)
    is_symmetric: bool = True
    prune_lm_head: bool = False

    @property
    def base(self) -> str:
        """Return the precision of most matrices, as the builder calls it."""
        return self.name.partition("_")[0]


SOURCES: dict[str, type[Model]] = {
    "miniature": MiniatureModel,
    "smollm2": Smollm2Model,
    "hub": HubModel,
    "folder": FolderModel,
}
# Precisions with keys of their own; every other one is a plain Precision.
PRECISIONS: dict[str, type[Precision]] = {
    "int4": QuantizedPrecision,
    "int4_mixed": QuantizedPrecision,
    "int8": QuantizedPrecision,
}
