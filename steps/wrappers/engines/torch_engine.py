"""Continuous batching of a causal language model on torch.

The batch is left-padded: row r of the key-value cache [rows, heads, width, head size] holds its
sequence in its last columns, and the mask [rows, width] tells which. New rows of like length are
prefilled together and joined to the batch; rows that are over are dropped, and columns that only they used with them.
"""

import logging
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, Cache

from .growing_cache import growing_cache
from .packed_linear import pack
from .sequence import Sequence, choose, groups

# Tokens of one prefill, padding included: a CPU gains nothing by more, and each of them takes memory.
PREFILL_TOKENS = 2048
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


class TorchEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, precision: str, max_batch_size: int, device: str):
        self.max_batch_size = max_batch_size
        self._device = _device(device)
        dtype = _dtype(precision, self._device, directory)
        self._model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        self._model.eval().to(self._device)
        if dtype == torch.float32 and self._device.type == "cpu":
            pack(self._model)
        self.reset()

    def reset(self) -> None:
        """Start with an empty batch."""
        self._rows: list[Sequence] = []
        self._cache: Cache | None = None
        self._mask = torch.empty(0)

    @torch.inference_mode()
    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Prefill the arriving sequences and join them, or else decode one token for every row."""
        if not arriving:
            return _choose(self._rows, self._decode())
        tokens = []
        for group in groups(arriving, PREFILL_TOKENS):
            logits, cache, mask = self._prefill(group)
            tokens += _choose(group, logits)
            self._join(group, cache, mask)
        return tokens

    @torch.inference_mode()
    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows, and the columns that no remaining row uses."""
        keep = [row for row, sequence in enumerate(self._rows) if sequence not in sequences]
        if not keep:
            return self.reset()
        if len(keep) < len(self._rows):
            self._rows = [self._rows[row] for row in keep]
            index = torch.tensor(keep, device=self._device)
            mask = self._mask[index]
            first = int(mask.any(dim=0).int().argmax())
            self._mask = mask[:, first:].contiguous()
            for layer in self._cache.layers:
                layer.keys = layer.keys[index, :, first:].contiguous()
                layer.values = layer.values[index, :, first:].contiguous()

    def _prefill(self, sequences: list[Sequence]) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        """Run the prompts; returns logits [rows, vocabulary], their cache and mask [rows, width]."""
        width = max(len(sequence.prompt) for sequence in sequences)
        paddings = [width - len(sequence.prompt) for sequence in sequences]
        ids = torch.tensor(
            [[0] * padding + sequence.prompt for padding, sequence in zip(paddings, sequences, strict=True)],
            device=self._device,
        )
        mask = torch.arange(width, device=self._device) >= torch.tensor(paddings, device=self._device)[:, None]
        cache = growing_cache()
        return self._forward(ids, mask, (mask.long().cumsum(dim=1) - 1).clamp(min=0), cache), cache, mask

    def _decode(self) -> torch.Tensor:
        """Run the last token of every row; returns logits [rows, vocabulary]."""
        ids = torch.tensor([[sequence.tokens[-1]] for sequence in self._rows], device=self._device)
        positions = torch.tensor([[sequence.length - 1] for sequence in self._rows], device=self._device)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        return self._forward(ids, self._mask, positions, self._cache)

    def _forward(self, ids, mask, positions, cache) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _join(self, sequences: list[Sequence], cache: Cache, mask: torch.Tensor) -> None:
        """Put prefilled rows under the batch, both padded on the left to the same width."""
        if not self._rows:
            self._rows, self._cache, self._mask = list(sequences), cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._rows += sequences
        self._mask = torch.cat([_pad_left(self._mask, width, dim=1), _pad_left(mask, width, dim=1)])
        for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys = torch.cat([_pad_left(ours.keys, width, dim=2), _pad_left(theirs.keys, width, dim=2)])
            ours.values = torch.cat([_pad_left(ours.values, width, dim=2), _pad_left(theirs.values, width, dim=2)])


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(precision: str, device: torch.device, directory: str) -> torch.dtype:
    """What to compute in: fp32 for bf16 weights on a processor that could only emulate bf16, if memory allows."""
    if precision == "bf16" and device.type == "cpu" and not _has_bf16():
        needed = 2 * sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
        memory = _memory()
        if needed <= memory / 2:
            return torch.float32
        logger.warning(
            "This processor computes bf16 slowly, and for fp32 the weights take %.1f GB, more than half of the "
            "memory's %.1f GB. mode=onnx precision=int4 is faster here.",
            needed / 1e9,
            memory / 1e9,
        )
    return DTYPES[precision]


def _has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _memory() -> int:
    """Bytes of memory that this process may have: the machine's, or fewer where its container has a limit."""
    limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.is_file() else ""
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total


def _pad_left(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Pad dimension `dim` on the left with zeros (False) to `width`."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _choose(sequences: list[Sequence], logits: torch.Tensor) -> list[tuple[Sequence, int]]:
    """The next token of every sequence from logits [rows, vocabulary]: greedy, or drawn by its settings."""
    return choose(sequences, logits.argmax(dim=-1).tolist(), lambda row: logits[row].cpu().numpy())
