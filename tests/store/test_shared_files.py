"""One copy of the weights: what a further variant adds, and that each variant stands alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from steps.store import shared_files
from tests.mlflow_server import MlflowServer
from tests.modes.random_phi3 import random_phi3
from tests.support import flip

# 25 MB in fp32: its weights are large files in every precision.
SIZES = {"vocab_size": 1500, "hidden_size": 512, "intermediate_size": 1024}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def source(checkpoint, tmp_path_factory):
    return random_phi3(tmp_path_factory.mktemp("source") / "phi3", checkpoint.directory, **SIZES)


@pytest.fixture
def own_source(source, tmp_path):
    """A copy that a test may change or delete."""
    return shutil.copytree(source, tmp_path / "own")


@pytest.fixture
def build(typed, monkeypatch, tmp_path):
    """Build a variant of a folder, with a cache of the test's own; returns its folder in the store."""
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))

    def run(folder, *overrides):
        done = typed("build", "model=local", f"model.path={folder}", "check=false", *overrides)
        assert done.returncode == 0, done.stderr
        model = mlflow.get_logged_model(done.stdout.split("models:/")[1].split()[0])
        return Path(model.artifact_location)

    return run


def _bytes(*folders):
    """The bytes on the disk of some folders: a file with two names counts once."""
    files = [file.stat() for folder in folders for file in folder.rglob("*") if file.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())


def _answer(location):
    return mlflow.pyfunc.load_model(str(location)).predict(MESSAGES)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["mode=pyfunc"], id="fp32"),
        pytest.param(["mode=pyfunc", "precision=bf16"], id="bf16", marks=pytest.mark.slow),
        pytest.param(["mode=onnx", "precision=int4"], id="int4", marks=pytest.mark.slow),
    ],
)
def test_a_further_variant_adds_at_most_two_percent_of_the_checkpoint(source, build, overrides):
    first = build(source, *overrides)
    further = build(source, *overrides, "prompting=brief")
    assert _bytes(first, further) - _bytes(first) <= 0.02 * _bytes(source)
    assert _bytes(further) > 0.05 * _bytes(source)


def test_modes_share_a_checkpoint_too(source, build):
    first = build(source, "mode=pyfunc")
    further = build(source, "mode=transformers")
    assert _bytes(first, further) - _bytes(first) <= 0.02 * _bytes(source)


def test_every_variant_stands_alone_when_the_source_the_cache_and_the_others_are_gone(own_source, build, tmp_path):
    variants = [build(own_source, "mode=onnx", *overrides) for overrides in ([], ["prompting=brief"], ["mode=pyfunc"])]
    expected = _answer(variants[1])
    shutil.rmtree(own_source)
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(variants[0])
    assert _answer(variants[1])["choices"] == expected["choices"]
    assert _answer(variants[2])["choices"]


def test_a_folder_of_the_users_shares_nothing_with_a_model(own_source, build):
    first = build(own_source, "mode=pyfunc")
    flip(own_source / "model.safetensors")
    assert _answer(first)["choices"]


@pytest.mark.slow
def test_a_damaged_variant_is_no_source_for_another_one(source, build):
    first = build(source, "mode=pyfunc")
    flip(first / "artifacts" / "checkpoint" / "model.safetensors")
    further = build(source, "mode=pyfunc", "prompting=brief")
    assert _answer(further)["choices"]


@pytest.mark.slow
def test_bf16_weights_are_linked_as_they_are(checkpoint, build, tmp_path):
    import torch

    source = random_phi3(tmp_path / "bf16", checkpoint.directory, dtype=torch.bfloat16, **SIZES)
    variant = build(source, "mode=pyfunc", "precision=bf16")
    stored = variant / "artifacts" / "checkpoint" / "model.safetensors"
    assert stored.read_bytes() == (source / "model.safetensors").read_bytes()
    assert not list((tmp_path / "cache").glob("bf16-*"))
    further = build(source, "mode=pyfunc")
    assert (further / "artifacts" / "checkpoint" / "model.safetensors").samefile(stored)


@pytest.mark.slow
def test_gc_frees_the_bytes_that_no_variant_has_any_more(source, build, tmp_path):
    variants = [build(source, "mode=pyfunc", *overrides) for overrides in ([], ["prompting=brief"])]
    weights = [variant / "artifacts" / "checkpoint" / "model.safetensors" for variant in variants]
    client = mlflow.MlflowClient()
    for variant, remaining in zip(variants, (1, 0), strict=True):
        client.delete_logged_model(variant.parent.name)
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", mlflow.get_tracking_uri()]
        subprocess.run(command, check=True, capture_output=True)
        assert [file.stat().st_nlink for file in weights if file.exists()] == [1] * remaining


@pytest.mark.slow
def test_on_a_server_the_stock_flavour_has_its_own_whole_copy(source, build, tmp_path, monkeypatch, step):
    folder = tmp_path / "server"
    folder.mkdir()
    server = MlflowServer(folder)
    server.start()
    try:
        server.wait()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        done = step("build", "model=local", f"model.path={source}", "mode=transformers")
        assert done.returncode == 0, done.stderr
        (stored,) = (folder / "artifacts").rglob("model.safetensors")
        assert stored.read_bytes() == (source / "model.safetensors").read_bytes()
    finally:
        server.kill()


def test_only_large_weights_are_set_aside(tmp_path):
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "small.safetensors").write_bytes(b"x" * (shared_files.LARGE - 1))
    (staged / "tokenizer.json").write_bytes(b"x" * shared_files.LARGE)
    with shared_files.set_aside_large_files(staged) as (rest, large):
        assert (rest, large) == (staged, {})
    (staged / "model.onnx.data").write_bytes(b"x" * shared_files.LARGE)
    with shared_files.set_aside_large_files(staged) as (rest, large):
        assert sorted(file.name for file in rest.iterdir()) == ["small.safetensors", "tokenizer.json"]
        assert large == {"model.onnx.data": staged / "model.onnx.data"}


@pytest.mark.parametrize("mode", ["transformers", "pyfunc"])
def test_a_tokenizer_may_be_large(own_source, build, mode):
    """That of Phi-4-mini has 15 MB."""
    tokenizer = own_source / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " " * shared_files.LARGE)
    assert _answer(build(own_source, f"mode={mode}"))
