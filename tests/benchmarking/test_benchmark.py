"""The step as it is typed, with a Phi-3 that is too small to measure anything."""

import contextlib
import gc
import re
import weakref
from dataclasses import replace

import mlflow
import pandas as pd
import pytest

import steps.benchmark
from steps.benchmarking import report
from steps.benchmarking.checkpoint import SHAPES
from steps.benchmarking.comparison import compare
from steps.benchmarking.place import SIZES, Place, Size
from steps.config import benchmark
from steps.config.benchmark import SECTIONS
from steps.errors import StepError
from steps.store.names import NOTE

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 4, "vocab_size": 1500}


@pytest.fixture
def tiny(monkeypatch):
    """Make `small` tiny."""
    monkeypatch.setitem(SHAPES, "small", SHAPES["small"] | TINY)
    monkeypatch.setitem(SIZES, "small", Size("small", "few parameters", 4, 4, ("bf16",)))
    # A model of this size is done before the clock has moved much: whether the machine is quiet does not matter.
    monkeypatch.setattr("steps.benchmarking.comparison.DRIFT", 1e9)
    monkeypatch.setattr("steps.benchmark.compare", _compare_once)


def _compare_once(section, comparison, rounds, control):
    """Compare without a warm-up: test_comparison.py has it."""
    return compare(section, replace(comparison, warm_up=False), rounds, control)


def test_every_size_can_be_named():
    assert tuple(SIZES) == benchmark.SIZES


@pytest.fixture
def kept(monkeypatch):
    """How many engines of models that were measured before are in memory whenever a variant is built."""
    engines, numbers = weakref.WeakSet(), []
    load, build = Place.loaded, Place.build

    @contextlib.contextmanager
    def loaded(self, *overrides):
        with load(self, *overrides) as model:
            engines.add(model.unwrap_python_model().scheduler.engine)
            yield model
            del model

    def built(self, *words):
        folder = build(self, *words)
        gc.collect()
        numbers.append(len(engines))
        return folder

    monkeypatch.setattr(Place, "loaded", loaded)
    monkeypatch.setattr(Place, "build", built)
    return numbers


@pytest.mark.slow
def test_every_section_compares_and_is_logged(typed, tiny, kept):
    # An evaluation also works in a store that nothing was built in.
    sections = sorted(SECTIONS, key=lambda name: name != "evaluation")
    done = typed("benchmark", "rounds=1", f"sections=[{','.join(sections)}]")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if " against " in line]
    assert list(dict.fromkeys(line.partition(":")[0] for line in lines)) == sections
    assert not [line for line in lines if "no ratio" in line]
    assert set(kept) == {0}
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.run_name == "benchmark-small"
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) == len(lines) == run.data.tags[NOTE].count("\n| ") - 1
    table = pd.DataFrame(**mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/benchmark.json"))
    assert (table["ratio"] > 0).all()
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {"benchmark.json", "rounds.json", "machine.json", *(f"{section}.png" for section in SECTIONS)}
    assert mlflow.search_logged_models(output_format="list") == []


def test_a_gpu_is_measured_where_there_is_one(monkeypatch):
    for is_there, devices in ((True, ["cpu", "cuda"]), (False, ["cpu"])):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=is_there: there)
        assert steps.benchmark.devices_here(["cpu", "cuda"]) == devices
        assert steps.benchmark.devices_here(["cpu"]) == ["cpu"]


def test_the_page_of_a_run_names_the_gpu():
    facts = {"processor": "P", "cores": 2, "memory_bytes": 8e9, "read_bandwidth": 2e10}
    assert report.markdown([], facts).startswith("2 cores of P. 8 GB of memory, reads 20 GB/s.")
    assert report.markdown([], facts | {"gpu": "G"}).startswith("2 cores of P and a GPU, G. 8 GB of memory")


@pytest.mark.slow
def test_what_was_measured_before_a_failure_is_logged(typed, tiny, monkeypatch):
    run_command, commands = Place.run, []

    def fails_at_the_second(self, *words):
        commands.append(words)
        if len(commands) == 2:
            raise StepError("steps.build failed: out of luck")
        return run_command(self, *words)

    monkeypatch.setattr(Place, "run", fails_at_the_second)
    done = typed("benchmark", "rounds=1", "sections=[limits]")
    assert (done.returncode, done.stderr) == (1, "error: steps.build failed: out of luck\n")
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"
    table = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/benchmark.json")
    assert [row[0] for row in table["data"]] == ["limits"]


def test_a_full_disk_is_one_sentence(typed, tiny, monkeypatch):
    """As a build says it, which does not know that its cache belongs to the benchmark."""

    def full(*_):
        raise StepError("steps.build failed: The cache /c cannot be used (No space left on device): set PHI3_CACHE_DIR")

    monkeypatch.setattr(Place, "run", full)
    done = typed("benchmark", "rounds=1", "sections=[limits]")
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert re.fullmatch(r"error: \S+ is full\. Free some space, choose a smaller size, or name .*\n", done.stderr)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("size=huge", "size must be one of small, medium, phi3_mini, got 'huge'."),
        (
            "sections=[engines,speed]",
            "each entry of sections must be one of scoring, engines, limits, serving, ",
        ),
        ("sections=[]", "sections is needed: give -P sections=…"),
        ("devices=[gpu]", "each entry of devices must be one of cpu, cuda, got 'gpu'"),
        (
            "devices=[cuda]",
            "devices=[cuda] needs a GPU that torch can use, and this machine has none: take devices=[cpu].",
        ),
        ("rounds=0", "rounds must be at least 1 and at most 100, got 0."),
    ],
)
def test_a_wrong_key_is_one_sentence(typed, monkeypatch, word, fault):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = typed("benchmark", word)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert fault in line
