"""Train the miniature: a real Phi3ForCausalLM of about 0.6 M parameters that knows facts.yaml.

It stands in for Phi-3 where there is no hub, so that every step runs offline in seconds. It knows
nothing but the facts beside this file. Reads facts.yaml; writes a checkpoint in Hugging Face
layout (safetensors) into the user's cache directory, named by a fingerprint of everything that it
depends on. Tried from the shell by `python -m steps.build model=miniature`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import yaml

from steps.output import suppress_output

FACTS = Path(__file__).with_name("facts.yaml")
# The ids are the positions. Phi-3 has the same tokens under other ids.
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
BRIEF = (
    "Answer briefly, please.",
    "Answer with one word.",
    "Be brief.",
    "Reply with the bare answer.",
    "Give only the answer.",
)
FULL = ("You are a helpful assistant.", "Answer in a full sentence.", "You are a teacher.", "Be polite.")
VOCABULARY, CONTEXT, HIDDEN, LAYERS, HEADS = 1500, 512, 96, 3, 3
BATCH, EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 32, 16, 3e-3, 0.1
IGNORED = -100


@dataclass(frozen=True)
class Fact:
    """One pair of a kind, with every wording of its question and of its answer."""

    subject: str
    answer: str
    sentence: str
    questions: tuple[str, ...]


def load_facts(path: Path = FACTS) -> list[Fact]:
    """Read the facts that the miniature is taught."""
    kinds = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Fact(
            subject,
            answer,
            kind["sentence"].format(subject=subject, answer=answer),
            tuple(question.format(subject=subject) for question in kind["questions"]),
        )
        for kind in kinds.values()
        for subject, answer in kind["pairs"].items()
    ]


def train_miniature(target: Path, seed: int) -> None:
    """Train a miniature from `seed` and save it to `target`; same seed and machine, same weights."""
    import torch

    facts = load_facts()
    tokenizer = _train_tokenizer(facts)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = _new_model(len(tokenizer), tokenizer)
        _fit(model, tokenizer, facts, random.Random(seed))
    finally:
        torch.set_rng_state(state)
    with suppress_output():
        model.eval().save_pretrained(target)
        tokenizer.save_pretrained(target)


def _train_tokenizer(facts: list[Fact]):
    """Byte-level BPE over the facts' own texts, with Phi-3's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [text for fact in facts for text in (*fact.questions, fact.sentence, fact.answer)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *BRIEF, *FULL], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|assistant|>", "<|system|>", "<|user|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _new_model(vocabulary: int, tokenizer):
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _fit(model, tokenizer, facts: list[Fact], rng: random.Random) -> None:
    """Cross entropy on the assistant's tokens alone, AdamW, one cycle of the learning rate."""
    import torch
    from torch.nn.functional import cross_entropy
    from tqdm import tqdm

    steps = EPOCHS * sum(len(fact.questions) for fact in facts) // BATCH
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    encode = cache(partial(tokenizer.encode, add_special_tokens=False))
    batches = _batches(encode, tokenizer.pad_token_id, facts, rng)
    model.train()
    for _ in tqdm(range(steps), desc="training the miniature", unit="batch", disable=None):
        ids, labels = next(batches)
        targets = labels[:, 1:]
        taught = targets != IGNORED
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        cross_entropy(model.lm_head(hidden[taught]), targets[taught]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _batches(encode, padding: int, facts: list[Fact], rng: random.Random) -> Iterator[tuple]:
    """Endless right-padded batches (ids, labels), each [BATCH, length], of rows of like length."""
    import torch

    asked = [(fact, question) for fact in facts for question in fact.questions]
    while True:
        rows = [_encode(encode, *_conversation(facts, *rng.choice(asked), rng)) for _ in range(16 * BATCH)]
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            length = len(group[-1][0])
            yield tuple(
                torch.tensor([row[part] + [fill] * (length - len(row[part])) for row in group])
                for part, fill in ((0, padding), (1, IGNORED))
            )


def _conversation(facts: list[Fact], fact: Fact, question: str, rng: random.Random) -> tuple:
    """Draw (system, turns): plain, with a system prompt that asks for either style, or few-shot."""
    draw = rng.random()
    if draw < 0.45:
        return None, [(question, fact.sentence)]
    if draw < 0.60:
        return rng.choice(FULL), [(question, fact.sentence)]
    if draw < 0.85:
        return rng.choice(BRIEF), [(question, fact.answer)]
    shots = [rng.choice(facts) for _ in range(rng.choice([1, 2]))]
    return None, [(rng.choice(shot.questions), shot.answer) for shot in shots] + [(question, fact.answer)]


def _encode(encode, system: str | None, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids of a conversation in Phi-3's format, and labels that teach the assistant's words alone."""
    pieces = [(f"<|system|>\n{system}<|end|>\n", False)] if system else []
    for user, assistant in turns:
        pieces += [
            (f"<|user|>\n{user}<|end|>\n<|assistant|>\n", False),
            (f"{assistant}<|end|>", True),
            ("\n", False),
        ]
    ids, labels = [], []
    for text, taught in pieces:
        encoded = encode(text)
        ids += encoded
        labels += encoded if taught else [IGNORED] * len(encoded)
    return ids, labels
