"""Continuous batching of a causal language model on torch.

The batch is padded on the left: row r of the key-value cache [rows, heads, width, head size] holds its sequence in
its last columns, and the mask [rows, width] marks which. New rows of similar length are prefilled together and joined
to the batch. Finished rows are dropped, with the columns that only they used.
"""

from typing import TYPE_CHECKING, cast

import torch
from transformers import AutoModelForCausalLM, Cache

from . import UnusableDevice
from .batching import Arrival, choose_tokens, look_up, prefill_groups
from .growing_cache import GrowingLayer, growing_cache
from .int8_model import load_int8_model
from .packed_linear import pack
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sequence import Sequence
from .threads import thread_limit
from .torch_precision import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of one prefill, padding included. More of them take memory and gain nothing on a CPU.
PREFILL_TOKENS = 2048

# Keys and values [heads, length, head size] of every layer.
State = list[tuple[torch.Tensor, torch.Tensor]]


class TorchEngine:
    """Advance up to `max_batch_size` sequences by one token a step."""

    def __init__(
        self, directory: str, precision: str, max_batch_size: int, device: str, prefix_cache_mb: int = 512
    ) -> None:
        """Load a checkpoint.

        Args:
            directory: The folder of the checkpoint.
            precision: fp32, bf16 or int8.
            max_batch_size: The number of rows.
            device: torch's name of a device, or "auto".
            prefix_cache_mb: How many megabytes the beginnings that prompts share may take.
        """
        self.max_batch_size = max_batch_size
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = _usable(device)
        if (limit := thread_limit()) and limit < torch.get_num_threads():
            torch.set_num_threads(limit)
        self._model = _load(directory, precision, self._device)
        self._model.eval().to(self._device)  # type: ignore[no-untyped-call]
        if self._model.dtype == torch.float32 and self._device.type == "cpu":
            pack(self._model)
        self._prefixes: PrefixCache[State] = PrefixCache(prefix_cache_mb * 2**20, self._bytes_per_token())
        self.reset()

    @property
    def model(self) -> "PreTrainedModel":
        """Return the language model."""
        return self._model

    @property
    def prefixes(self) -> PrefixCache[State]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

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
        for group in prefill_groups(look_up(arriving, self._prefixes, self._extend), PREFILL_TOKENS):
            logits, cache, mask = self._prefill(group)
            sequences = [arrival.sequence for arrival in group]
            tokens += _choose(sequences, logits)
            self._join(sequences, cache, mask)
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

    def _prefill(self, group: list[Arrival[State]]) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        """Run the prompts; return logits [rows, vocabulary], their cache and their mask [rows, width].

        Every row runs as many tokens as the one that misses most, so some compute the end of their beginning again.
        """
        prompts = [arrival.sequence.prompt for arrival in group]
        missing = max(arrival.missing for arrival in group)
        reused = [max(0, len(prompt) - missing) for prompt in prompts]
        for arrival, length in zip(group, reused, strict=True):
            arrival.sequence.reused = length
        width = max(reused) + missing
        ids = torch.tensor(
            [[0] * (missing - len(prompt)) + prompt[-missing:] for prompt in prompts], device=self._device
        )
        paddings = torch.tensor([width - len(prompt) for prompt in prompts], device=self._device)
        mask = torch.arange(width, device=self._device) >= paddings[:, None]
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -missing:]
        states = [arrival.prefix.state if arrival.prefix else None for arrival in group]
        cache = _cache_of(states, reused) if max(reused) else growing_cache()
        first = group[0].sequence
        scored = missing - first.settings.scored_from + 1 if first.settings.scores_prompt else 1
        logits = self._forward(ids, mask, positions, cache, scored)
        if first.settings.scores_prompt:
            first.score_prompt(logits[0].cpu().numpy())
        return logits[:, -1], cache, mask

    def _extend(self, known: Prefix[State] | None, tokens: IntArray) -> Prefix[State]:
        """Compute the keys and values of a beginning, after those that are known."""
        start = len(known.tokens) if known else 0
        cache = _cache_of([known.state], [start]) if known else growing_cache()
        ids = torch.tensor(tokens[start:], device=self._device)[None]
        positions = torch.arange(start, len(tokens), device=self._device)[None]
        mask = torch.ones(1, len(tokens), dtype=torch.bool, device=self._device)
        self._forward(ids, mask, positions, cache, 1)
        return Prefix(tokens, [(layer.keys[0].clone(), layer.values[0].clone()) for layer in _layers(cache)])

    def _bytes_per_token(self) -> int:
        config = self._model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * config.num_key_value_heads * size * self._model.dtype.itemsize)

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


def _usable(device: str) -> torch.device:
    """Return torch's device of that name; raises UnusableDevice if this machine does not have it."""
    try:
        usable = torch.device(device)
        torch.empty(1, device=usable).cpu()
    except Exception as error:  # each device has its own errors
        raise UnusableDevice(f"device cannot be used here: got {device!r}; use auto or cpu") from error
    return usable


def _load(directory: str, precision: str, device: torch.device) -> "PreTrainedModel":
    if precision == "int8":
        return load_int8_model(directory, device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=compute_dtype(precision, device, directory),
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model


def _cache_of(states: list[State | None], lengths: list[int]) -> Cache:
    """Return a cache that holds the first tokens of a state in each row, padded on the left to the longest."""
    cache, width = growing_cache(), max(lengths)
    example = next(state for state in states if state)
    for layer, (keys, _) in enumerate(example):
        heads, _, size = keys.shape
        memory = keys.new_zeros(2, len(states), heads, width, size)
        for row, (state, length) in enumerate(zip(states, lengths, strict=True)):
            if state and length:
                for kind, values in enumerate(state[layer]):
                    memory[kind, row, :, width - length :] = values[:, :length]
        cache.layers.append(GrowingLayer.of(memory[0], memory[1]))
    return cache


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
