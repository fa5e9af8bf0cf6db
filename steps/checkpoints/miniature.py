"""The miniature: a real Phi3ForCausalLM with about 0.6 M parameters, trained on the facts in facts.yaml.

It stands in for Phi-3 where there is no hub, so that every step runs offline in seconds. It knows nothing except
those facts. Reads facts.yaml; writes a checkpoint in Hugging Face layout (safetensors) into the user's cache
directory, named after a digest of everything that the training depends on. Try it with
`python -m steps.build model=miniature`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from steps.checkpoints.cache import cache_directory, cached
from steps.config.schema import MiniatureModel
from steps.digests import digest, digest_files
from steps.output import activity, echo, suppress_output
from steps.wrappers.manifest import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi3ForCausalLM, PreTrainedTokenizerFast

FACTS = Path(__file__).with_name("facts.yaml")
# The position is the id. Phi-3 has the same tokens with other ids.
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# System prompts that ask for the bare answer, and others that leave the full sentence.
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
# The label of tokens that are not learned.
IGNORED = -100


@dataclass(frozen=True)
class Fact:
    """One subject and its answer, with every wording of the question and the full sentence."""

    subject: str
    answer: str
    sentence: str
    questions: tuple[str, ...]


def fetch(model: MiniatureModel) -> tuple[Path, None]:
    """Return the folder of the miniature for `model.seed`, and no revision; train it if it is not in the cache."""
    code = digest_files([Path(__file__), FACTS])
    name = digest([model.seed, code, version("torch"), version("transformers"), MANIFEST])[:16]

    def train(directory: Path) -> None:
        echo(f"Training the miniature Phi-3 (once; it is kept in {cache_directory()}) …")
        with activity("training the miniature"):
            train_miniature(directory, model.seed)

    return cached(f"miniature-{name}", train), None


def load_facts(path: Path = FACTS) -> list[Fact]:
    """Return the facts that the miniature is trained on."""
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


def train_miniature(target: Path, seed: int, epochs: int = EPOCHS, file: Path = FACTS) -> None:
    """Train a miniature on a file of facts and save it to `target`.

    The same seed gives the same weights on the same machine.
    """
    import torch

    facts = load_facts(file)
    tokenizer = _train_tokenizer(facts)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = _new_model(tokenizer)
        _fit(model, tokenizer, facts, random.Random(seed), epochs)
    finally:
        torch.set_rng_state(state)
    with suppress_output():
        model.eval().save_pretrained(target)  # type: ignore[no-untyped-call]
        tokenizer.save_pretrained(target)


def _train_tokenizer(facts: list[Fact]) -> "PreTrainedTokenizerFast":
    """Train byte-level BPE on the texts of the facts, with Phi-3's special tokens and chat template."""
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
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
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


def _new_model(tokenizer: "PreTrainedTokenizerFast") -> "Phi3ForCausalLM":
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(  # type: ignore[no-untyped-call]
        Phi3Config(
            vocab_size=len(tokenizer),
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


def _fit(
    model: "Phi3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    facts: list[Fact],
    rng: random.Random,
    epochs: int,
) -> None:
    """Train with AdamW and a one-cycle learning rate; the loss is cross entropy on the assistant's tokens."""
    import torch
    from torch.nn.functional import cross_entropy
    from tqdm import tqdm

    steps = epochs * sum(len(fact.questions) for fact in facts) // BATCH
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
        learned = targets != IGNORED
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        cross_entropy(model.lm_head(hidden[learned]), targets[learned]).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _batches(
    encode: Callable[[str], list[int]], padding: int, facts: list[Fact], rng: random.Random
) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Yield right-padded batches (ids, labels) without end, each [BATCH, length], with rows of similar length."""
    import torch

    questions = [(fact, question) for fact in facts for question in fact.questions]
    while True:
        rows = [_encode(encode, *_conversation(facts, *rng.choice(questions), rng)) for _ in range(16 * BATCH)]
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            length = len(group[-1][0])
            ids = [ids + [padding] * (length - len(ids)) for ids, _ in group]
            labels = [labels + [IGNORED] * (length - len(labels)) for _, labels in group]
            yield torch.tensor(ids), torch.tensor(labels)


def _conversation(
    facts: list[Fact], fact: Fact, question: str, rng: random.Random
) -> tuple[str | None, list[tuple[str, str]]]:
    """Draw (system prompt, turns) for a question: plain, with a system prompt that sets the style, or few-shot."""
    draw = rng.random()
    if draw < 0.45:
        return None, [(question, fact.sentence)]
    if draw < 0.60:
        return rng.choice(FULL), [(question, fact.sentence)]
    if draw < 0.85:
        return rng.choice(BRIEF), [(question, fact.answer)]
    shots = [rng.choice(facts) for _ in range(rng.choice([1, 2]))]
    return None, [(rng.choice(shot.questions), shot.answer) for shot in shots] + [(question, fact.answer)]


def _encode(
    encode: Callable[[str], list[int]], system: str | None, turns: list[tuple[str, str]]
) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation in Phi-3's format, and labels that ignore all but the assistant's tokens."""
    pieces = [(f"<|system|>\n{system}<|end|>\n", False)] if system else []
    for user, assistant in turns:
        pieces += [
            (f"<|user|>\n{user}<|end|>\n<|assistant|>\n", False),
            (f"{assistant}<|end|>", True),
            ("\n", False),
        ]
    ids: list[int] = []
    labels: list[int] = []
    for text, is_learned in pieces:
        piece = encode(text)
        ids += piece
        labels += piece if is_learned else [IGNORED] * len(piece)
    return ids, labels
