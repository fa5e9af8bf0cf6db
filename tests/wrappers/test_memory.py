"""The cache of a batch takes a share of the memory that is free, here or in a container."""

from dataclasses import replace

import pytest

from steps.wrappers.engines import container, memory
from steps.wrappers.engines.memory import SHARE, cache_tokens
from steps.wrappers.engines.sequence import Sequence, Settings

GIB = 2**30
MEMINFO = f"MemTotal:       16777216 kB\nMemFree: 100 kB\nMemAvailable:   {8 * GIB // 1024} kB\n"
V2 = {"pod/memory.max": f"{4 * GIB}\n", "pod/memory.current": f"{3 * GIB}\n"}
V1 = {"memory/memory.limit_in_bytes": f"{2 * GIB}\n", "memory/memory.usage_in_bytes": f"{GIB}\n"}


@pytest.mark.parametrize(
    ("meminfo", "files", "free"),
    [
        (MEMINFO, {}, 8 * GIB),
        (MEMINFO, V2, GIB),
        (MEMINFO, V2 | {"pod/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n"}, 3 * GIB),
        (MEMINFO, V2 | {"pod/box/memory.max": "max\n", "pod/box/memory.current": "7\n"}, GIB),
        (MEMINFO, V2 | {"memory.max": f"{GIB}\n", "memory.current": f"{GIB // 2}\n"}, GIB // 2),
        (MEMINFO, {"pod/memory.max": f"{GIB}\n", "pod/memory.current": f"{2 * GIB}\n"}, 0),
        (MEMINFO, {"pod/memory.max": "max\n", "pod/memory.current": "1\n"}, 8 * GIB),
        (MEMINFO, {"pod/memory.max": "nonsense\n"}, 8 * GIB),
        (MEMINFO, V1, GIB),
        (MEMINFO, V1 | {"memory/memory.stat": f"total_inactive_file {GIB // 2}\n"}, GIB + GIB // 2),
        (MEMINFO, V1 | {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 8 * GIB),
        ("MemTotal: 1 kB\n", {}, None),
        (None, {}, None),
    ],
)
def test_free_memory_is_the_machines_or_what_a_container_leaves(monkeypatch, tmp_path, meminfo, files, free):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "own").write_text("0::/pod/box\n")
    if meminfo:
        (tmp_path / "meminfo").write_text(meminfo)
    monkeypatch.setattr(container, "GROUPS", tmp_path)
    monkeypatch.setattr(container, "OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert cache_tokens(1000) == (None if free is None else max(1, int(SHARE * free) // 1000))


def test_on_a_gpu_its_own_memory_counts():
    assert cache_tokens(GIB, 10 * GIB) == 4


@pytest.fixture(params=["torch", "onnx", "openvino"])
def scheduler(request):
    return request.getfixturevalue(f"{request.param}_scheduler")


def _sequences(tokenizer, *max_tokens):
    texts = ("What is the capital of Spain?", "And of France?", "Say something long about Rome, please.", "Yes?")
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
    return [
        Sequence(prompt, Settings(0.0, 1.0, 0, most), tokenizer)
        for prompt, most in zip(prompts, max_tokens, strict=True)
    ]


def test_an_engine_knows_its_limit(scheduler):
    """The miniature's tokens are small, and this machine has memory for many."""
    assert scheduler.engine.cache_tokens > 16 * 512


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_no_more_rows_run_than_the_cache_has_memory_for(scheduler, tokenizer, monkeypatch, rows):
    expected = _sequences(tokenizer, 32, 32, 32, 32)
    scheduler.run(expected)
    longest = max(each.longest for each in expected)
    monkeypatch.setattr(scheduler.engine, "cache_tokens", rows * longest)
    step, most = scheduler.engine.step, []

    def counting(arriving):
        most.append(scheduler.running)
        return step(arriving)

    monkeypatch.setattr(scheduler.engine, "step", counting)
    sequences = _sequences(tokenizer, 32, 32, 32, 32)
    scheduler.run(sequences)
    assert [each.text for each in sequences] == [each.text for each in expected]
    assert max(most) == rows


def test_a_long_row_waits_until_the_others_are_done_and_is_not_passed_by(torch_scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(torch_scheduler.engine, "cache_tokens", 100)
    finished = []
    monkeypatch.setattr(torch_scheduler, "on_finished", finished.append)
    # The queue is in order of the prompts' lengths: the long one is the second.
    sequences = sorted(_sequences(tokenizer, 8, 8, 8, 8), key=lambda each: each.length)
    sequences[1].settings = replace(sequences[1].settings, max_tokens=300)
    torch_scheduler.run(sequences)
    assert [sequences.index(each) for each in finished[:2]] == [0, 1]
