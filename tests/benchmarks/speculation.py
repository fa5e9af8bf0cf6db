"""Compare one stream with and without speculation, on tasks that repeat their input and on tasks that do not.

    python -m tests.benchmarks.speculation

Needs `model=smollm2` (docs/checkpoints.md): a random model repeats nothing but itself. Each task is answered by turns
without and with; the answers must be equal in fp32.
"""

import argparse
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from steps import command_line
from steps.checkpoints.checkpoint import resolve
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.engines.sequence import Sequence, Settings
from steps.wrappers.engines.speculation import Speculation
from steps.wrappers.engines.torch_engine import TorchEngine
from steps.wrappers.tokenizer import ChatTokenizer

TOKENS = 128
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
        f"Write this text again, word for word:\n\n{ARTICLE}",
        f"Summarize this text in three sentences, with its own words:\n\n{ARTICLE}",
    ],
    "new text": [
        "Write a short story about a cat that learns to sail.",
        "Explain how bread is made.",
        "Give ten names for a new bicycle, each with a reason.",
        "What should a visitor see in Rome? Answer at length.",
    ],
}


class Silent(Speculation):
    """Draft nothing."""

    def draft(self, sequence: Sequence) -> list[int]:
        """Return no tokens."""
        return []


def main(rounds: int) -> None:
    """Print tokens/s of one stream with and without, and the ratio of the seconds."""
    checkpoint = resolve(command_line.compose("build", ["model=smollm2"]).model)
    tokenizer = ChatTokenizer(checkpoint.directory)
    table = Table(title=f"one stream, SmolLM2-135M, {TOKENS} tokens at most, {rounds} rounds")
    for column in ("engine", "task", "without, tokens/s", "with", "ratio", "quartiles", "same answers"):
        table.add_column(column, justify="left" if column in ("engine", "task") else "right")
    for precision in ("fp32", "bf16"):
        scheduler = Scheduler(TorchEngine(str(checkpoint.directory), precision, 16, "cpu"))
        for kind, texts in TASKS.items():
            ratios, rates, same = [], [], 0
            for text in texts:
                prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
                answer(
                    scheduler, tokenizer, prompt, None
                )  # so that the prompt is as known for one side as for the other
                pairs = [
                    (answer(scheduler, tokenizer, prompt, Silent()), answer(scheduler, tokenizer, prompt, None))
                    for _ in range(rounds)
                ]
                same += all(without[0] == drafted[0] for without, drafted in pairs)
                for without, drafted in pairs:
                    rates.append((without[1], drafted[1]))
                    ratios.append(drafted[1] / without[1])
            low, middle, high = statistics.quantiles(ratios, n=4)
            before, after = (statistics.median(column) for column in zip(*rates, strict=True))
            table.add_row(
                f"torch, {precision}",
                kind,
                *(f"{before:.0f}", f"{after:.0f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"),
                f"{same} of {len(texts)}",
            )
    Console(width=120).print(table)


def answer(
    scheduler: Scheduler, tokenizer: ChatTokenizer, prompt: list[int], speculation: Speculation | None
) -> tuple[list[int], float]:
    """Return the tokens of an answer and tokens/s after the first token."""
    engine: Any = scheduler.engine
    ours = engine._speculation
    engine._speculation = speculation or ours
    sequence = Sequence(prompt, Settings(0.0, 1.0, 0, TOKENS), tokenizer)
    scheduler.run([sequence])
    engine._speculation = ours
    _, first, last = sequence.times
    return sequence.tokens, (len(sequence.tokens) - 1) / max(last - first, 1e-9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args().rounds)
