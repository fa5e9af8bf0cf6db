"""The miniature: its facts, its reproducible training, and its Phi-3 format."""

import yaml

from steps.checkpoints import miniature
from steps.config.schema import PromptSet
from steps.evaluation import prompt_set

FACTS = PromptSet("facts", "conf/prompt_set/facts.jsonl")


def test_there_are_enough_facts_and_wordings():
    kinds = yaml.safe_load(miniature.FACTS.read_text())
    assert len(kinds) >= 5
    assert sum(len(kind["pairs"]) for kind in kinds.values()) >= 100
    assert min(len(kind["questions"]) for kind in kinds.values()) >= 3


def test_the_prompt_set_uses_other_wordings_than_the_training():
    trained = {question for fact in miniature.load_facts() for question in fact.questions}
    rows = prompt_set.load(FACTS).rows
    assert len(rows) >= 60
    assert not trained & {row.question for row in rows}
    assert len({tag for row in rows for tag in row.tags}) >= 5


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        miniature.train_miniature(tmp_path / name, seed, epochs=1)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other")}
    assert weights["first"] == weights["again"]
    assert weights["first"] != weights["other"]


def test_it_is_a_phi3_with_its_special_tokens_and_chat_template(checkpoint):
    from transformers import AutoTokenizer, Phi3ForCausalLM

    model = Phi3ForCausalLM.from_pretrained(checkpoint.directory)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    assert type(model) is Phi3ForCausalLM
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n"
    assert tokenizer.tokenize(rendered)[0] == "<|system|>"
    assert tokenizer.eos_token == "<|end|>"
    assert not list(checkpoint.directory.glob("*.bin"))
