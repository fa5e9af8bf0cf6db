"""Linear layers on oneDNN, with weights that are reordered for it once.

torch gives an fp32 linear layer to MKL. MKL is slow on few rows if the processor has no AVX-512 or is not Intel's:
on an AMD EPYC with AVX2, 8 rows took 5 times as long as one. The operators here are those that `torch.compile`
inserts into frozen models.
"""

import torch

# For a smaller layer and one row, the call of the operator costs more than it saves.
MIN_WEIGHTS = 2**20
# The number of rows that the layout is optimized for. Any other number works.
ROWS = 16


class PackedLinear(torch.nn.Module):
    """Compute what a linear layer computes, on fp32 CPU tensors [..., inputs]; for inference only."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [..., outputs] for rows [..., inputs]."""
        outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return outputs


def pack(model: torch.nn.Module) -> None:
    """Replace the large linear layers of an fp32 model on the CPU.

    Weights are replaced module by module, so only one module's are in memory twice.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    # Without the linear layers themselves: a list of them would keep all of the old weights until the end.
    for module in [module for module in model.modules() if type(module) is not torch.nn.Linear]:
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and layer.weight.numel() >= MIN_WEIGHTS:
                setattr(module, name, PackedLinear(layer))
