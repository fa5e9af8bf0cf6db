"""Small Phi-3 checkpoints with random weights, and what transformers makes of them."""

import json
import shutil
import warnings

from steps.checkpoints.int8 import save_as_int8
from steps.output import suppress_output
from steps.wrappers.engines.sequence import Sequence, Settings

SIZES = {
    "vocab_size": 1200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def random_phi3(folder, tokenizer_folder, change=None, dtype=None, **config):
    """Save a model with random weights; `change` edits its config.json. The tokenizer is another model's."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**SIZES | config)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            # Weights so large make logits so different that the best token does not depend on the last bits.
            weights.copy_(
                torch.randn_like(weights) * 0.25 if weights.dim() > 1 else 1 + torch.randn_like(weights) * 0.1
            )
    torch.set_rng_state(state)
    with suppress_output():  # a progress bar
        model.to(dtype or torch.float32).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(tokenizer_folder / name, folder)
    if change:
        edit_json(folder / "config.json", change)
    return folder


def saved_as_int8(source, folder):
    """Save a checkpoint in int8; return its folder, which has what the torch engine reads."""
    folder.mkdir()
    save_as_int8(source, folder)
    shutil.copy(source / "config.json", folder)
    return folder


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without(*names, **values):
    """Return an edit that removes keys and sets others."""

    def change(content):
        for name in names:
            content.pop(name, None)
        content.update(values)

    return change


def reference(folder, prompt, count):
    """Return the greedy tokens of transformers and their logits, without a cache and without a batch."""
    import torch
    from transformers import Phi3ForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Phi3ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids, logits = list(prompt), []
    with torch.inference_mode():
        for _ in range(count):
            logits.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy())
            ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :], logits


class _NoText:
    """A detokenizer that makes no text."""

    def push(self, token):
        return ""

    def finish(self):
        return ""


class _NoEnd:
    """A tokenizer without end tokens."""

    end_tokens = frozenset()
    detokenizer = _NoText


def generate(engine, prompts, count, late=None):
    """Run an engine to the end; the last prompt arrives at step `late`. Returns the sequences."""
    sequences = [Sequence(list(prompt), Settings(0.0, 1.0, 0, count), _NoEnd()) for prompt in prompts]
    waiting = list(sequences) if late is None else [*sequences[:-1], None, sequences[-1]]
    running, step = [], 0
    while waiting or running:
        arriving = []
        while waiting and (waiting[0] is not None or step >= late):
            arriving += [entry for entry in [waiting.pop(0)] if entry]
        running += arriving
        for sequence, token in engine.step(arriving):
            sequence.push(token)
        finished = [sequence for sequence in running if sequence.done.is_set()]
        engine.remove(finished)
        running = [sequence for sequence in running if sequence not in finished]
        step += 1
    assert [sequence.error for sequence in sequences if sequence.error] == []
    return sequences
