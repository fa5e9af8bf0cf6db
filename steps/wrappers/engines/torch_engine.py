"""Continuous batching of a causal language model on torch.

The batch is padded on the left: row r of the key-value cache [rows, heads, width, head size] holds its sequence in
its last columns, and the mask [rows, width] marks which. New rows of similar length are prefilled together and joined
to the batch. Finished rows are dropped, with the columns that only they used.
"""

from typing import TYPE_CHECKING, cast

import torch
from transformers import AutoModelForCausalLM, Cache

from .batching import choose_tokens, prefill_groups
from .growing_cache import GrowingLayer, growing_cache
from .packed_linear import pack
from .sequence import Sequence
from .torch_precision import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of one prefill, padding included. More of them take memory and gain nothing on a CPU.
PREFILL_TOKENS = 2048


class TorchEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(self, directory: str, precision: str, max_batch_size: int, device: str) -> None:
        """Load the checkpoint in a folder; `device` is torch's name of a device, or "auto"."""
        self.max_batch_size = max_batch_size
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        dtype = compute_dtype(precision, self._device, directory)
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
        self._model.eval().to(self._device)  # type: ignore[no-untyped-call]
        if dtype == torch.float32 and self._device.type == "cpu":
            pack(self._model)
        self.reset()

    @property
    def model(self) -> "PreTrainedModel":
        """Return the language model."""
        return self._model

    def reset(self) -> None:
        """Start with an empty batch."""
        self._rows: list[Sequence] = []
        self._cache = growing_cache()
        self._mask = torch.empty(0)

    @torch.inference_mode()
    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Prefill the arriving sequences and join them; without any, decode one token for every row."""
        if not arriving:
            return _choose(self._rows, self._decode())
        tokens = []
        for group in prefill_groups(arriving, PREFILL_TOKENS):
            logits, cache, mask = self._prefill(group)
            tokens += _choose(group, logits)
            self._join(group, cache, mask)
        return tokens

    @torch.inference_mode()
    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows, and the columns that no remaining row uses."""
        keep = [row for row, sequence in enumerate(self._rows) if sequence not in sequences]
        if not keep:
            self.reset()
        elif len(keep) < len(self._rows):
            self._rows = [self._rows[row] for row in keep]
            index = torch.tensor(keep, device=self._device)
            mask = self._mask[index]
            first = int(mask.any(dim=0).int().argmax())
            self._mask = mask[:, first:].contiguous()
            for layer in _layers(self._cache):
                layer.keys = layer.keys[index, :, first:].contiguous()
                layer.values = layer.values[index, :, first:].contiguous()

    def _prefill(self, sequences: list[Sequence]) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        """Run the prompts; return logits [rows, vocabulary], their cache and their mask [rows, width]."""
        width = max(len(sequence.prompt) for sequence in sequences)
        paddings = [width - len(sequence.prompt) for sequence in sequences]
        ids = torch.tensor(
            [[0] * padding + sequence.prompt for padding, sequence in zip(paddings, sequences, strict=True)],
            device=self._device,
        )
        mask = torch.arange(width, device=self._device) >= torch.tensor(paddings, device=self._device)[:, None]
        cache, scored = growing_cache(), sequences[0].settings.scores_prompt
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        logits = self._forward(ids, mask, positions, cache, width if scored else 1)
        if scored:
            sequences[0].score_prompt(logits[0].cpu().numpy())
        return logits[:, -1], cache, mask

    def _decode(self) -> torch.Tensor:
        """Run the last token of every row; return logits [rows, vocabulary]."""
        ids = torch.tensor([[sequence.tokens[-1]] for sequence in self._rows], device=self._device)
        positions = torch.tensor([[sequence.length - 1] for sequence in self._rows], device=self._device)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        return self._forward(ids, self._mask, positions, self._cache, 1)[:, -1]

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache, keep: int
    ) -> torch.Tensor:
        """Run tokens; return the logits of the last `keep` columns [rows, keep, vocabulary]."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits.float()
        return logits

    def _join(self, sequences: list[Sequence], cache: Cache, mask: torch.Tensor) -> None:
        """Append prefilled rows to the batch, both padded on the left to the same width."""
        if not self._rows:
            self._rows, self._cache, self._mask = list(sequences), cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._rows += sequences
        self._mask = torch.cat([_pad_left(self._mask, width, dim=1), _pad_left(mask, width, dim=1)])
        for ours, theirs in zip(_layers(self._cache), _layers(cache), strict=True):
            ours.keys = torch.cat([_pad_left(ours.keys, width, dim=2), _pad_left(theirs.keys, width, dim=2)])
            ours.values = torch.cat([_pad_left(ours.values, width, dim=2), _pad_left(theirs.values, width, dim=2)])


def _layers(cache: Cache) -> list[GrowingLayer]:
    return cast("list[GrowingLayer]", cache.layers)


def _pad_left(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Pad dimension `dim` on the left with zeros (False) to `width`."""
    missing = width - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _choose(sequences: list[Sequence], logits: torch.Tensor) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from logits [rows, vocabulary]."""
    return choose_tokens(sequences, logits.argmax(dim=-1).tolist(), lambda row: logits[row].cpu().numpy())
