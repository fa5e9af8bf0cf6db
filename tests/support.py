"""What several test files share: variants without a store, prompt sets, damaged files, waiting and dying."""

import json
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

from steps import command_line
from steps.config.schema import PromptSet as PromptSetConfig
from steps.evaluation import prompt_set
from steps.evaluation.prompt_set import PromptSet
from steps.evaluation.prompt_set.row import Row
from steps.store import names
from steps.store.variants import Variant

# The exit code of a process that a test ends.
KILLED = 99


def make_variant(
    *,
    mode="onnx",
    precision="fp32",
    interface="chat",
    temperature=0.0,
    overrides=(),
    name="variant",
    model_id="m-1",
    run_id="r-1",
    tags=(),
    metrics=(),
):
    """Return a variant that no store knows, with the configuration that `build` would compose."""
    chosen = [f"mode={mode}", f"precision={precision}", f"interface={interface}"]
    config = command_line.compose("build", [*chosen, f"generation.temperature={temperature}", *overrides])
    return Variant(
        model_id=model_id,
        run_id=run_id,
        name=name,
        tags={names.FINGERPRINT: "f"} | dict(tags),
        config=config,
        metrics=tuple(metrics),
    )


class EchoModel:
    """A fake model that repeats every question, followed by the seed that came with it.

    Attributes:
        fails: Questions that it raises an error for.
        calls: The rows and the params of every call.
        in_list: Whether a single reply comes in a list, as from MLflow's stock flavour.
    """

    def __init__(self, *fails, in_list=False):
        self.fails, self.in_list, self.calls = fails, in_list, []

    @property
    def sizes(self):
        """How many rows each call had."""
        return [len(rows) for rows, _ in self.calls]

    def predict(self, data, params=None):
        rows = data.to_dict("records") if hasattr(data, "to_dict") else [data]
        self.calls.append((rows, params))
        replies = [self.reply(row, params or {}) for row in rows]
        return replies if len(replies) > 1 or self.in_list else replies[0]

    def predict_stream(self, data, params=None):
        """Yield the reply word by word, after an empty piece."""
        pieces = ["", *self.answer(data, params or {}).split()]
        yield from pieces if "prompt" in data else ({"choices": [{"delta": {"content": piece}}]} for piece in pieces)

    def reply(self, row, params):
        answer = self.answer(row, params)
        if "prompt" in row:
            return answer
        tokens = len(answer.split())
        usage = {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens}
        return {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}], "usage": usage}

    def answer(self, row, params):
        text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
        if text in self.fails:
            raise ValueError(f"no {text}\nwith details")
        seed = params.get("seed", (row.get("custom_inputs") or {}).get("seed"))
        return text if seed is None else f"{text} {seed}"


def make_prompt_set(*questions, name="set"):
    """Return a prompt set with a row for each question."""
    return PromptSet(name, tuple(Row(f"row-{text}", (("user", text),), ("t",), ()) for text in questions))


def make_row(row_id, prompt="What is the capital of Spain?", target="Madrid", **fields):
    """Return one line of a prompt set as an object."""
    return {"id": row_id, "prompt": prompt, "target": target} | fields


def write_prompt_set(file, rows):
    """Write rows (objects) to a file; return the override that chooses it, and its sha256."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompt_set.path={file}", prompt_set.load(PromptSetConfig("mine", str(file))).sha256


def die_in(patch, owner, function):
    """Have a function of a module or class end the process, as far as a test's process can be ended."""

    def die(*_, **__):
        sys.exit(KILLED)

    patch.setattr(owner, function, die)


def free_port():
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(address):
    """Return True if a server answers at an address."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def wait_until(condition, seconds=30, pause=0.02):
    """Return the first true result of `condition`; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{condition} is not true after {seconds} s"
        time.sleep(pause)
    return result


def flip(file):
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    """Lose the second half of a file."""
    os.truncate(file, file.stat().st_size // 2)


def append(file):
    """Add a line break at the end of a file."""
    with file.open("ab") as opened:
        opened.write(b"\n")


def enter_store(patch, folder, caches):
    """Make a store the one that steps use, in this process and in those that it starts."""
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    patch.setenv("PHI3_CACHE_DIR", str(caches / "phi3"))
    patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    patch.chdir(folder)
