"""Compare one stream with and without speculation, on tasks that repeat their input and on tasks that do not.

    python -m tests.benchmarks.speculation

Needs `model=smollm2` (docs/checkpoints.md): a random model repeats nothing but itself. Each task is answered by turns
without and with; the answers are equal. It takes about two minutes on two cores.
"""

import argparse
import random
import statistics
from collections.abc import Iterator
from typing import Any

from steps import command_line
from steps.checkpoints.checkpoint import Checkpoint, resolve
from steps.modes import get_mode
from steps.wrappers.engines.onnx_engine import OnnxEngine
from steps.wrappers.engines.scheduler import Engine, Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.speculation import Speculation
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer

ARTICLE = (
    "The harbour of Lindholm was built in 1874 by the engineer Astrid Vale. It has two basins, a dry dock for ships of "
    "up to ninety metres, and a lighthouse of red granite. In the winter of 1902 a storm broke the northern wall, and "
    "the town rebuilt it within a year. Today the harbour serves forty fishing boats and a ferry to the islands of "
    "Skar and Holme, which sails three times a day."
)
RECORDS = "\n".join(
    f'{{"id": {number}, "name": "{name}", "city": "{city}", "active": true}}'
    for number, (name, city) in enumerate(
        [("Alice Moreau", "Lyon"), ("Boris Petrov", "Sofia"), ("Carla Jensen", "Aarhus"), ("Deniz Kaya", "Izmir")], 101
    )
)
TASKS = {
    "repeats": [
        f"Correct the spelling of this text and write it again, changing nothing else:\n\n{ARTICLE}",
        f"Copy these records word for word:\n\n{RECORDS}",
    ],
    "new text": [
        "Write a short story about a cat that learns to sail.",
        "What should a visitor see in Rome? Answer at length.",
    ],
}


class Silent(Speculation):
    """Draft nothing."""

    def draft(self, sequence: Sequence) -> list[int]:
        """Return no tokens."""
        return []


def main(rounds: int, tokens: int) -> None:
    """Print tokens/s of one stream with and without, and the ratio of the seconds."""
    checkpoint = resolve(command_line.compose("build", ["model=smollm2"]).model)
    tokenizer = ChatTokenizer(checkpoint.directory)
    print(f"one stream, SmolLM2-135M, at most {tokens} tokens, {rounds} rounds: tokens/s without and with, their ratio")
    for name, engine in engines(checkpoint):
        scheduler = Scheduler(engine)
        for kind, texts in TASKS.items():
            prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
            pairs = [pair(scheduler, tokenizer, prompt, tokens) for _ in range(rounds) for prompt in prompts]
            rates = [(without[1], drafted[1]) for without, drafted in pairs]
            before, after = (statistics.median(column) for column in zip(*rates, strict=True))
            low, middle, high = statistics.quantiles([drafted / without for without, drafted in rates], n=4)
            same = sum(without[0] == drafted[0] for without, drafted in pairs)
            figures = f"{before:.0f} {after:.0f}  {middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"{name:12}{kind:10}{figures}  the same answer {same} times of {len(pairs)}", flush=True)
        scheduler.stop()


def engines(checkpoint: Checkpoint) -> Iterator[tuple[str, Engine]]:
    """Yield the engines that speculate, each made when the one before is measured. They keep no beginnings."""
    yield "torch, fp32", TorchEngine(str(checkpoint.directory), "fp32", 16, "cpu", prefix_cache_mb=0)
    with get_mode("onnx").stage(checkpoint, command_line.compose("build", ["model=smollm2", "mode=onnx"])) as exported:
        yield "onnx, fp32", OnnxEngine(str(exported), 16, prefix_cache_mb=0)


def pair(scheduler: Scheduler, tokenizer: ChatTokenizer, prompt: list[int], tokens: int) -> list[Any]:
    """Return an answer without speculation and one with it; which comes first is drawn, so that neither gains."""
    order = [False, True] if random.random() < 0.5 else [True, False]
    answers = {drafted: answer(scheduler, tokenizer, prompt, tokens, drafted) for drafted in order}
    return [answers[False], answers[True]]


def answer(
    scheduler: Scheduler, tokenizer: ChatTokenizer, prompt: list[int], tokens: int, drafted: bool
) -> tuple[list[int], float]:
    """Return the tokens of an answer and tokens/s after the first token."""
    engine: Any = scheduler.engine
    ours = engine._speculation
    engine._speculation = ours if drafted else Silent()
    sequence = Sequence(prompt, Settings(0.0, 1.0, 0, tokens), tokenizer)
    scheduler.run([sequence])
    engine._speculation = ours
    _, first, last = sequence.times
    return sequence.tokens, (len(sequence.tokens) - 1) / max(last - first, 1e-9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.tokens)
