"""Linear layers with int8 weights that multiply in int8: one scale for each output, and one for each row of the input.

Dynamic W8A8 quantisation: a row is divided by its own largest value and rounded to 8 bits, multiplied with the int8
weights on oneDNN (AMX or VNNI), and scaled back. Sums of integers are exact, so a row does not depend on the other
rows of its batch.
"""

import functools
import logging

import torch

# The largest int8 and half of the range of uint8: oneDNN multiplies unsigned rows with signed weights.
LARGEST, CENTER = 127, 128
# Divides a row of zeros, which stays zeros.
TINY = 1e-30
# Without them, sums of products of 8 bits saturate at 16 bits.
EXACT_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

logger = logging.getLogger(__name__)


def quantize(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 weights [outputs, inputs] and their scales [outputs]: weights = int8 x scale."""
    weights = weights.float()
    scales = weights.abs().amax(dim=1).clamp(min=TINY) / LARGEST
    return torch.round(weights / scales[:, None]).clamp(-LARGEST, LARGEST).to(torch.int8), scales


class Int8Linear(torch.nn.Module):
    """Compute a linear layer of int8 weights on fp32 CPU tensors [..., inputs]; for inference only."""

    def __init__(self, weights: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take int8 weights [outputs, inputs], their scales [outputs] and the bias [outputs]."""
        super().__init__()
        self._packed = torch.ops.onednn.qlinear_prepack(weights, None)
        self._scales, self._bias = scales.float(), bias
        self._zeros = torch.zeros(len(scales), dtype=torch.int64)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [..., outputs] for rows [..., inputs]."""
        flat = rows.reshape(-1, rows.shape[-1])
        largest = flat.abs().amax(dim=1, keepdim=True).clamp_(min=TINY)
        quantized = (flat * (LARGEST / largest)).round_().add_(CENTER).to(torch.uint8)
        outputs: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized,
            1 / LARGEST,
            CENTER,
            self._packed,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        outputs *= largest
        if self._bias is not None:
            outputs += self._bias
        return outputs.view(*rows.shape[:-1], -1)


def int8_linear(
    weights: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Return a layer of int8 weights: in int8 if that is exact and fast, else with the weights as `dtype`."""
    if dtype == torch.float32 and multiplies_int8():
        return Int8Linear(weights, scales, bias)
    linear = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=bias is not None, device="meta")
    linear.weight = torch.nn.Parameter((weights.float() * scales[:, None]).to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


@functools.cache
def multiplies_int8() -> bool:
    """Return True if torch multiplies int8 here in one instruction, without saturating."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not any(torch.cpu.get_capabilities().get(name) for name in EXACT_INSTRUCTIONS):
        return False
    # The variable ONEDNN_MAX_CPU_ISA may forbid an instruction that the processor has, so try it.
    inputs = 256
    layer = Int8Linear(torch.full((32, inputs), LARGEST, dtype=torch.int8), torch.ones(32), None)
    return bool(torch.allclose(layer(torch.ones(4, inputs)), torch.tensor(float(inputs * LARGEST))))


def report_kernel(dtype: torch.dtype) -> None:
    """Log what computes int8 weights in a model of that type."""
    if dtype == torch.float32 and multiplies_int8():
        logger.info("int8 weights are multiplied in int8 by oneDNN.")
    else:
        logger.warning("int8 weights are computed as %s: this device has no int8 products that torch can use.", dtype)
