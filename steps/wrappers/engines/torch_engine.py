"""Continuous batching of a causal language model on torch.

New rows of similar length are prefilled together and joined to a batch, which is padded on the left. Finished rows are
dropped, with the columns that only they used. Rows much longer than the others are a batch of their own: a second pass
over the weights costs less than attention to that much padding.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, Cache

from . import UnusableDevice, grouped_attention
from .admission import Admission, Pass, Passes
from .batching import Arrival, choose_tokens, groups_in_turn, look_up
from .growing_cache import growing_cache
from .int8_model import load_int8_model
from .memory import cache_tokens
from .packed_linear import pack
from .prefix_cache import IntArray, Prefix, PrefixCache
from .sequence import Sequence
from .speculation import Speculation, accepted_tokens, may_speculate
from .threads import release_helpers, thread_limit
from .torch_batch import State, TorchBatch, cache_of, layers
from .torch_precision import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of prompts that are prefilled side by side, padding included, and of one pass on a GPU.
PREFILL_TOKENS = 2048
# Tokens of one pass on a CPU. Larger intermediate results would get new memory from the system each time.
CPU_TOKENS = 256
# So much padding costs as much as one more pass, on a GPU and on the matrix units of a processor.
FAST_PASS = 128
# A pass over the weights of a small model takes as long as reading so many bytes.
SHORTEST_PASS = 2**26


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
        if self._device.type == "cuda":
            # torch prefers cuDNN's attention for bf16 on some GPUs, which is prepared anew for each length of the keys.
            torch.backends.cuda.enable_cudnn_sdp(False)
        if (limit := thread_limit()) and limit < torch.get_num_threads():
            torch.set_num_threads(limit)
        self._model = _load(directory, precision, self._device)
        self._model.eval().to(self._device)  # type: ignore[no-untyped-call]
        if self._model.dtype == torch.float32 and self._device.type == "cpu":
            pack(self._model)
        release_helpers()
        on_gpu = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None
        self._is_exact = precision != "int8" and self._model.dtype == torch.float32
        self._bytes_per_token = _bytes_per_token(self._model)
        self.cache_tokens = cache_tokens(self._bytes_per_token, on_gpu)
        weights = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
        self._most_padding = max(weights, SHORTEST_PASS) // self._bytes_per_token
        self._prefixes: PrefixCache[State] = PrefixCache(prefix_cache_mb * 2**20, self._bytes_per_token)
        longest = CPU_TOKENS if self._device.type == "cpu" else PREFILL_TOKENS
        self.admission = Admission(self._enter, longest, PREFILL_TOKENS)
        self._pass_cost = _pass_cost(precision, self._device)
        self._speculation = Speculation()
        self._batches: list[TorchBatch] = []

    @property
    def model(self) -> "PreTrainedModel":
        """Return the language model."""
        return self._model

    @property
    def prefixes(self) -> PrefixCache[State]:
        """Return the beginnings of prompts that are kept."""
        return self._prefixes

    def reset(self) -> None:
        """Forget every sequence."""
        self.admission.clear()
        self._prefixes.reset()
        self._batches = []

    @torch.inference_mode()
    def step(self, arriving: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Run pieces of the prompts of new sequences, or decode one token for every row."""
        rows = [sequence for batch in self._batches for sequence in batch.rows]
        chosen = self.admission.step(arriving, rows)
        if chosen is not None:
            return chosen
        if self._may_speculate(rows):
            plain, check = partial(self._advance, self._batches[0]), partial(self._check, self._batches[0])
            return self._speculation.advance(rows[0], plain, check)
        return [token for batch in self._batches for token in self._advance(batch)]

    @torch.inference_mode()
    def remove(self, sequences: list[Sequence]) -> None:
        """Drop rows, and the columns that no remaining row uses."""
        batches, self._batches = self._batches, []
        for batch in batches:
            if any(sequence not in sequences for sequence in batch.rows):
                batch.drop(sequences)
                self._join(batch)

    def _enter(self, sequences: list[Sequence]) -> Passes[None]:
        """Run the prompts of new sequences in groups."""
        arrivals = yield from look_up(sequences, self._prefixes, self._extend)
        for group in groups_in_turn(arrivals, self.admission, spare=self._pass_cost):
            yield from self._prefill(group)

    def _prefill(self, group: list[Arrival[State]]) -> Passes[None]:
        """Run the prompts of a group, choose their first tokens and join them to a batch.

        Every row runs as many tokens as the one that misses most, so some compute the end of their beginning again.
        """
        sequences, prompts = [arrival.sequence for arrival in group], [arrival.sequence.prompt for arrival in group]
        missing = max(arrival.missing for arrival in group)
        reused = [max(0, len(prompt) - missing) for prompt in prompts]
        for arrival, length in zip(group, reused, strict=True):
            arrival.sequence.reused = max(0, length - arrival.computed)
        first, width = max(reused), max(reused) + missing
        ids = torch.tensor(
            [[0] * (missing - len(prompt)) + prompt[-missing:] for prompt in prompts], device=self._device
        )
        paddings = torch.tensor([width - len(prompt) for prompt in prompts], device=self._device)
        mask = torch.arange(width, device=self._device) >= paddings[:, None]
        states = [arrival.prefix.state if arrival.prefix else None for arrival in group]
        cache = growing_cache(width)
        if first:
            cache = yield from self.admission.copying(sum(reused), lambda: cache_of(states, reused, width))
        logits, tokens = yield from self._run(ids, mask, cache, sequences[0])
        total = sum(len(prompt) for prompt in prompts)
        if self.admission.divides(total):
            # The rows' next turn includes the new rows, so it is longer.
            yield Pass(tokens, ends_turn=True)
            tokens = 0
        chosen = _choose(sequences, logits)
        self._join(TorchBatch(sequences, cache, mask))
        # Those that were cancelled in the meantime, and are removed already.
        self.remove([sequence for sequence in sequences if sequence.is_over])
        yield Pass(tokens, tuple(chosen), copied=total)

    def _extend(self, known: Prefix[State] | None, tokens: IntArray) -> Passes[Prefix[State]]:
        """Compute the keys and values of a beginning, after those that are known."""
        start = len(known.tokens) if known else 0
        cache = growing_cache(len(tokens))
        if known:
            cache = yield from self.admission.copying(start, lambda: cache_of([known.state], [start], len(tokens)))
        ids = torch.tensor(tokens[start:], device=self._device)[None]
        mask = torch.ones(1, len(tokens), dtype=torch.bool, device=self._device)
        _, computed = yield from self._run(ids, mask, cache)
        yield Pass(computed)
        return Prefix(tokens, [(layer.keys[0].clone(), layer.values[0].clone()) for layer in layers(cache)])

    def _run(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, scored: Sequence | None = None
    ) -> Passes[tuple[torch.Tensor, int]]:
        """Run tokens [rows, width] in passes; the result is their last logits and the tokens of the last pass.

        Args:
            ids: The tokens of the last columns of the mask.
            mask: Which columns hold tokens, those that the cache holds included.
            cache: Keys and values of the columns before.
            scored: The sequence of the first row, if its prompt may be scored.
        """
        (rows, width), tokens = ids.shape, 0
        first = mask.shape[1] - width
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        is_scored = scored is not None and scored.settings.scores_prompt
        for start, end in self.admission.columns(width, rows):
            piece = slice(first + start, first + end)
            # From the token before the first one that is scored.
            rows_scored = min(end - start, first + end - scored.settings.scored_from + 1) if scored and is_scored else 0
            keep = max(1, rows_scored)
            logits = self._forward(ids[:, start:end], mask[:, : first + end], positions[:, piece], cache, keep)
            if self._device.type == "cuda":
                # A GPU has only been told what to compute, and the next pass is as long as this one's time allows.
                torch.cuda.synchronize(self._device)
            if scored and rows_scored > 0:
                scored.score_prompt(logits[0].cpu().numpy())
            tokens = rows * (end - start)
            if end < width:
                yield Pass(tokens)
        return logits[:, -1], tokens

    def _may_speculate(self, rows: list[Sequence]) -> bool:
        """Return True if one awaited row runs, and its answer does not depend on how many of its tokens a pass has.

        In bf16 and int8 it may, between tokens that are nearly as likely.
        """
        return self._is_exact and may_speculate(rows, self.admission.is_busy)

    def _advance(self, batch: TorchBatch) -> list[tuple[Sequence, int]]:
        """Decode the next token of every row."""
        return _choose(batch.rows, self._decode(batch)[:, -1])

    def _check(self, batch: TorchBatch, draft: list[int]) -> list[int]:
        """Return the next tokens of the only row: those of a draft that are right, and one more."""
        tokens = accepted_tokens(draft, self._decode(batch, draft)[0].argmax(dim=-1).tolist())
        batch.cut(len(draft) + 1 - len(tokens))
        return tokens

    def _decode(self, batch: TorchBatch, draft: Iterable[int] = ()) -> torch.Tensor:
        """Run the last token of every row, and a draft of what follows it in the only row.

        Returns logits [rows, 1 + drafted, vocabulary].
        """
        ids = torch.tensor([[sequence.tokens[-1], *draft] for sequence in batch.rows], device=self._device)
        positions = torch.tensor([[sequence.length - 1] for sequence in batch.rows], device=self._device)
        width = ids.shape[1]
        batch.mask = torch.nn.functional.pad(batch.mask, (0, width), value=True)
        columns = torch.arange(width, device=self._device)
        return self._forward(ids, batch.mask, positions + columns, batch.cache, width)

    def _join(self, new: TorchBatch) -> None:
        """Join rows to the batch that they need the least padding with, or make them one of their own."""
        batch = min(self._batches, key=new.padding_with, default=None)
        if batch and batch.padding_with(new) <= self._most_padding:
            batch.join(new, self.max_batch_size)
        else:
            self._batches.append(new)

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


def _usable(device: str) -> torch.device:
    """Return torch's device of that name; raises UnusableDevice if this machine does not have it."""
    try:
        usable = torch.device(device)
        torch.empty(1, device=usable).cpu()
    except Exception as error:  # each device has its own errors
        raise UnusableDevice(f"device cannot be used here: got {device!r}; use auto or cpu") from error
    return usable


def _pass_cost(precision: str, device: torch.device) -> int:
    """Return what a pass costs besides its tokens, in tokens: where products are fast, that is reading the weights."""
    if device.type == "cpu" and (precision == "fp32" or not torch.cpu.get_capabilities().get("amx_tile")):
        return 0
    return FAST_PASS


def _load(directory: str, precision: str, device: torch.device) -> "PreTrainedModel":
    if precision == "int8":
        return load_int8_model(directory, device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=compute_dtype(precision, device, directory),
        attn_implementation=grouped_attention.NAME,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model


def _bytes_per_token(model: "PreTrainedModel") -> int:
    """Return the bytes of the keys and values of one token."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize)


def _choose(sequences: list[Sequence], logits: torch.Tensor) -> list[tuple[Sequence, int]]:
    """Return the next token of every sequence from logits [rows, vocabulary]."""
    return choose_tokens(sequences, logits.argmax(dim=-1).tolist(), lambda row: logits[row].cpu().numpy())
