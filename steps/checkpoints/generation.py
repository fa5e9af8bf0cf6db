"""The generation settings of a checkpoint that our wrappers do not have.

transformers reads them from generation_config.json, and ONNX Runtime GenAI from genai_config.json. The settings that a
variant has (temperature, top_p, top_k, max_tokens) replace the checkpoint's; any other would be lost in silence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import StepError
from steps.wrappers.contract.neutral import asks_for_nothing

# By setting, the value that changes nothing, in addition to null, false, 0 and what is empty.
NEUTRAL = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "top_h"), 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha")),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "diversity_penalty", "max_time")),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "suppress_tokens")),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids")),
    **dict.fromkeys(("exponential_decay_length_penalty", "stop_strings", "watermarking_config", "dola_layers")),
}


def refuse_lost_settings(directory: Path) -> None:
    """Raise StepError for every generation setting of a checkpoint that changes answers and would be lost."""
    if lost := lost_settings(directory):
        raise StepError(*lost)


def lost_settings(directory: Path) -> list[str]:
    """Return a sentence about each generation setting of a checkpoint that changes answers and would be lost."""
    return [
        f"{name} in '{file}' is {value!r}, which this mode cannot do: remove it from the file, or take another mode."
        for file, settings in _sections(directory)
        for name, value in settings.items()
        if name in NEUTRAL and not asks_for_nothing(value) and value != NEUTRAL[name]
    ]


def _sections(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each file with generation settings, and its settings."""
    for name, key in (("generation_config.json", None), ("genai_config.json", "search")):
        file = directory / name
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            settings = content.get(key) if key else content
            yield file, settings if isinstance(settings, dict) else {}
