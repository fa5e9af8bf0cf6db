"""A random Phi-3 of 154 M parameters with the miniature's vocabulary, prompts for it, and a server of its variants."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from steps import command_line
from steps.build import build
from steps.checkpoints.checkpoint import resolve
from steps.config.schema import MiniatureModel
from steps.wrappers.tokenizer import ChatTokenizer
from tests.support import free_port

PROMPTS = 64


def random_phi3(folder: Path) -> Path:
    """Make a Phi-3 with random weights and the miniature's tokenizer, which never ends an answer; return its folder."""
    import torch
    from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

    miniature = resolve(MiniatureModel(name="miniature", seed=0))
    tokenizer = AutoTokenizer.from_pretrained(miniature.directory)
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=16,
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    # With zeros in its row of the output layer, the end token is never the likeliest: every answer has full length.
    with torch.no_grad():
        model.lm_head.weight[2] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mixed_prompts(tokenizer: ChatTokenizer) -> list[list[int]]:
    """Return prompts of mixed length, as token ids."""
    words = ["the", "capital", "of", "Spain", "is", "Madrid", "and"]
    texts = [" ".join(words[: 1 + index % 7] * (1 + index % 5)) for index in range(PROMPTS)]
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]


@contextlib.contextmanager
def served(folder: Path, mode: str, precision: str) -> Iterator[int]:
    """Build a variant of the checkpoint in `folder` and serve it until the end of the block; yield the port."""
    overrides = ["model=local", f"model.path={folder}", f"mode={mode}", f"precision={precision}"]
    model_id = build(command_line.compose("build", overrides))
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", f"models:/{model_id}", "--env-manager", "local", "-p", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    nowhere = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        yield port
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def wait_for(address: str) -> None:
    """Return when a server answers; raise TimeoutError after two minutes."""
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")
