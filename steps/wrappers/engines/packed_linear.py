"""Linear layers on oneDNN, with weights that are laid out for it once.

torch hands an fp32 linear layer to MKL, which is slow on few rows where the processor has no AVX-512 and on
processors of other makers: 8 rows took 5 times as long as one on an AMD EPYC with AVX2. The operators here are the
ones that `torch.compile` puts into frozen models.
"""

import torch

# A smaller layer loses more on one row, by the call of the operator, than is worth it.
MIN_WEIGHTS = 2**20
# Rows of a call that the layout is chosen for; any other number works.
ROWS = 16


class PackedLinear(torch.nn.Module):
    """What a linear layer computes, on an fp32 CPU tensor [..., inputs]; for inference only."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")


def pack(model: torch.nn.Module) -> None:
    """Replace the large linear layers of an fp32 model on the CPU; memory holds those of one module twice."""
    if not torch.backends.mkldnn.is_available():
        return
    # Without the layers themselves: a list of them would keep all of the old weights until the end.
    for module in [module for module in model.modules() if type(module) is not torch.nn.Linear]:
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and layer.weight.numel() >= MIN_WEIGHTS:
                setattr(module, name, PackedLinear(layer))
