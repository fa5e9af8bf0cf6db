"""What a newcomer types by mistake, and the sentence that says what to do. Nothing is built in any of them."""

import pytest

BROKEN, EMPTY, TEXT = "broken.jsonl", "empty.jsonl", "notes.jsonl"
FILES = {BROKEN: "{\n", EMPTY: "", TEXT: "What is the capital of Spain?\n"}
# By what is typed: the beginning of the first line of errors, then a word of the remedy.
MISTAKES = {
    "build mode=onx": ("Unknown mode 'onx'.", "Did you mean 'onnx'"),
    "build mode=vllm": ("Unknown mode 'vllm'.", "Available"),
    "build onnx": ("Expected key=value, got 'onnx'.", "key=value"),
    "build --onnx": ("Unknown key 'onnx'", "Available"),
    "build mode=onnx precision=bf16": ("precision=bf16 is not offered by mode=onnx", "Modes that have bf16"),
    "build precision=int2": ("Unknown precision 'int2'", "Available"),
    "build mode=onnx mode.device=cpu": ("mode.device is not a key of mode=onnx", "Add mode=pyfunc"),
    "build model.path=/models": ("model.path is not a key of the default model", "Add model=local"),
    "build model.repository=a/b": ("model.repository is not a key of the default model", "phi3_mini_4k"),
    "build precision.block_size=64": ("precision.block_size is not a key of the default", "precision=int4"),
    "build model=local": ("model.path is needed", "-P model.path="),
    "build model=local model.path=/nowhere": ("model.path must be a folder", "/nowhere"),
    "build model=phi-3": ("Unknown model 'phi-3'", "phi3_mini_4k"),
    "build temperature=0.5": ("Unknown key 'temperature'.", "Did you mean generation.temperature?"),
    "build max_tokens=64": ("Unknown key 'max_tokens'.", "Did you mean generation.max_tokens?"),
    "build system=Hello": ("Unknown key 'system'.", "Did you mean prompting.system?"),
    "build seed=3": ("Unknown key 'seed'.", "Did you mean model.seed?"),
    "build generation.temprature=0.5": ("Unknown key 'generation.temprature'", "generation.temperature"),
    "build generation.temperature=hot": ("generation.temperature", "hot"),
    "build generation.temperature=3": ("generation.temperature must be at least 0 and at most 2, got 3", "at most 2"),
    "build generation.top_p=0": ("generation.top_p must be above 0", "at most 1"),
    "build generation.max_tokens=0": ("generation.max_tokens must be at least 1, got 0", "at least 1"),
    "build interface=completion": ("interface must be one of chat, prompt", "prompt"),
    "build prompting=polite": ("Unknown prompting 'polite'", "Available"),
    "build generation=random": ("Unknown generation 'random'", "sampled"),
    "build check=maybe": ("check", "maybe"),
    "build prompting.name=a/b": ("prompting.name must be", "letters"),
    "evaluate": ("There is no variant to evaluate in this experiment.", "`python -m steps.build`"),
    "evaluate run_id=abc": ("run_id must be the run of a READY variant", "abc"),
    "evaluate prompt_set=fact": ("Unknown prompt_set 'fact'", "Did you mean 'facts'"),
    "evaluate prompt_set=missing.jsonl": (
        "prompt_set.path must be a file of rows, got 'missing.jsonl'",
        "does not exist",
    ),
    f"evaluate prompt_set={BROKEN}": (f"{BROKEN}: line 1: broken JSON", "line 1"),
    f"evaluate prompt_set.path={EMPTY}": (f"{EMPTY}: it holds no row", "no row"),
    f"evaluate prompt_set.path={TEXT}": (f"{TEXT}: line 1: broken JSON", "line 1"),
    "evaluate metrics=[chrf]": ("Unknown key 'metrics'", "evaluate.metrics"),
    "evaluate evaluate.metrics=[bleurt]": ("Unknown metric 'bleurt'", "Available"),
    "register": ("There is no variant to register in this experiment.", "`python -m steps.build`"),
    "register action=undo": ("action must be one of promote, history, rollback", "rollback"),
    "register version=2": ("version needs action=rollback", "rollback"),
    "register margin=0.1": ("Unknown key 'margin'", "promotion.margin"),
    "register promotion=fast": ("Unknown promotion 'fast'", "speed"),
    "register registered_model=a/b": ("registered_model must be a name", "a/b"),
    "register action=rollback": ("phi3 has no champion", "nothing to roll back"),
    "main variants=onnx-int8-chat": ("Unknown variant 'onnx-int8-chat'", "onnx-int4-chat"),
    "main variants=fast": ("Unknown variant 'fast'", "quick"),
    "main mode=onx": ("Unknown mode 'onx'", "Did you mean 'onnx'"),
    "main run_id=abc": ("run_id is a key of evaluate", "Leave it out"),
    "main action=rollback": ("action must be promote in main", "register"),
    "main prompt_set=mine.csv": ("prompt_set.path must be a file of rows, got 'mine.csv'", "does not exist"),
}


def test_there_are_forty_of_them():
    assert len(MISTAKES) >= 40


@pytest.mark.slow
def test_a_mistake_is_answered_by_a_sentence_that_says_what_to_do(typed, tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    wrong = {}
    for command, (sentence, remedy) in MISTAKES.items():
        done = typed(*command.split(" "))
        lines = done.stderr.splitlines() or ["nothing"]
        fits = lines[0].startswith(f"error: {sentence}") and remedy in done.stderr and len(lines) <= 3
        if done.returncode != 1 or not fits or "Traceback" in done.stderr or "Built" in done.stdout:
            wrong[command] = (done.returncode, done.stderr[-500:])
    assert wrong == {}, "\n".join(f"{command}: {outcome}" for command, outcome in wrong.items())
