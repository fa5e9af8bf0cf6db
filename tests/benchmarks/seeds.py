"""Two checkpoints on which int4 is truly worse and truly as good: which variant does the main job promote?

    python -m tests.benchmarks.promotion seeds            # 20 seeds
    python -m tests.benchmarks.promotion seeds --seeds 2

For each seed a miniature is trained. Two checkpoints are made of it, which compute the same in fp32 as before or nearly
so, and `python -m steps.main` builds both precisions, asks all rows, and promotes:

- worse: in each block of 32 inputs, one column of the weights is larger by SCALE and the norm before it smaller by as
  much. fp32 does not notice. In int4 that column decides over the steps of its block, and the others are lost.
- as good: the weights are rounded to the steps of int4, so that int4 loses nothing more.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from steps import main as main_job
from steps.config.schema import MiniatureModel

BLOCK, SCALE = 32, 24.0
RIGHT = {"worse": "local-onnx-fp32-chat-max24", "as_good": "local-onnx-int4-chat-max24"}
VARIANTS = "variants=[[mode=onnx, precision=int4], [mode=onnx]]"


def main(seeds: int) -> None:
    """Print a line for each seed and checkpoint, and how often the right variant won."""
    wins = dict.fromkeys(RIGHT, 0)
    print("| seed | int4 is | score fp32 | score int4 | champion | why |\n|---|---|---|---|---|---|")
    for seed in range(seeds):
        for kind, right in RIGHT.items():
            with tempfile.TemporaryDirectory() as folder:
                scores, champion, reason = race(kind, seed, Path(folder))
            wins[kind] += champion == right
            cells = [seed, kind, f"{scores[RIGHT['worse']]:.3f}", f"{scores[RIGHT['as_good']]:.3f}", champion, reason]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print("\nthe right variant won: " + ", ".join(f"{kind} {wins[kind]} of {seeds} seeds" for kind in RIGHT))


def race(kind: str, seed: int, folder: Path) -> tuple[dict[str, float], str, str]:
    """Run the main job on one checkpoint; return the scores by variant, the champion, and why."""
    checkpoint = make_checkpoint(kind, seed, folder / "checkpoint")
    words = ["model=local", f"model.path={checkpoint}", "evaluate.speed=false", "promotion.smoke=false", VARIANTS]
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    sys.argv = ["main", *words, "generation.max_tokens=24"]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            main_job.main()
        except SystemExit as error:
            raise RuntimeError(f"the main job ended with {error.code}: {output.getvalue()[-2000:]}") from error
    (report,) = folder.rglob("promotion.json")
    content = json.loads(report.read_text())
    scores = {row["variant"]: row["score"] for row in content["ranking"]}
    return scores, content["decision"]["candidate"], content["decision"]["reason"]


def make_checkpoint(kind: str, seed: int, folder: Path) -> Path:
    """Write the checkpoint of one kind, made of the miniature of a seed; return its folder."""
    import torch
    from transformers import AutoTokenizer, Phi3ForCausalLM

    from steps.checkpoints.checkpoint import resolve

    source = resolve(MiniatureModel(name="miniature", seed=seed)).directory
    model = Phi3ForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            if kind == "worse":
                _move_scale(layer.input_layernorm, layer.self_attn.qkv_proj)
                _move_scale(layer.post_attention_layernorm, layer.mlp.gate_up_proj)
            else:
                linears = layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj
                for linear in linears:
                    linear.weight.copy_(_rounded(linear.weight))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def _move_scale(norm, linear) -> None:
    """Make one column of each block larger and its norm smaller. What they compute together stays the same."""
    norm.weight[::BLOCK] /= SCALE
    linear.weight[:, ::BLOCK] *= SCALE


def _rounded(weight):
    """Return weights on the 16 steps that int4 has for each block: -8 to 7, of which -8 is the largest weight."""
    import torch

    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    step = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    return (torch.clamp(torch.round(blocks / step), -8, 7) * step).reshape(weight.shape)
