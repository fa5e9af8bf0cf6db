"""Answer prompts with OpenVINO GenAI, for a process that has other packages. Imports nothing of this project.

    python openvino_worker.py CHECKPOINT FOLDER WEIGHTS PROPERTIES

Exports CHECKPOINT to FOLDER with Optimum Intel and prints {}. Then each line of the input, {"prompts": [[id, …], …],
"tokens": how many}, gives a line {"answers": [[id, …], …]}. WEIGHTS is int4 or fp32, PROPERTIES a JSON object for the
CPU. What libraries print goes to stderr.
"""

import json
import os
import subprocess
import sys
from typing import Any

# Ids at the left of shorter prompts, which the mask covers.
PADDING = 0


def main() -> None:
    """Serve the standard input until it ends."""
    checkpoint, folder, weights, properties = sys.argv[1:]
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _export(checkpoint, folder, weights)
    pipeline = _pipeline(folder, json.loads(properties))
    _say(output, {})
    for line in sys.stdin:
        asked = json.loads(line)
        _say(output, {"answers": _answer(pipeline, asked["prompts"], asked["tokens"])})


def _export(checkpoint: str, folder: str, weights: str) -> None:
    """Export a checkpoint with Optimum Intel's command. Its Python function does not pack weights."""
    command = [sys.executable, "-I", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    words = ["--model", checkpoint, "--task", "text-generation-with-past", "--weight-format", weights, folder]
    subprocess.run([*command, *words], check=True, stdin=subprocess.DEVNULL)


def _pipeline(folder: str, properties: dict[str, Any]) -> Any:
    import openvino_genai

    return openvino_genai.LLMPipeline(folder, "CPU", **properties)


def _answer(pipeline: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Return the likeliest tokens for each prompt, as many as are asked for."""
    import numpy as np
    import openvino
    import openvino_genai

    width = max(map(len, prompts))
    ids = np.array([[PADDING] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = openvino_genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
    answers: list[list[int]] = pipeline.generate(inputs, settings).tokens
    return answers


def _say(output: Any, message: dict[str, Any]) -> None:
    output.write(json.dumps(message) + "\n")
    output.flush()


if __name__ == "__main__":
    main()
