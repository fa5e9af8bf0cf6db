"""A variant that this machine cannot run, or that fails, does not keep the others from being ranked."""

import mlflow
import onnxruntime_genai
import pytest
import torch

from steps import command_line, evaluate
from steps.build import build
from steps.evaluation import scoring
from steps.modes.onnx import OnnxSettings, export_to_onnx
from steps.modes.pyfunc import PyfuncSettings
from steps.promotion import registry
from steps.store.variants import find_variants
from steps.wrappers.manifest import MANIFEST

NO_GPU = "mode.device=cuda needs a GPU that torch can use, and this machine has none"
SHORT = ("evaluate.speed=false", "evaluate.metrics=[answer_match]", "prompt_set.metrics=[]")
BOTH = "variants=[[mode=pyfunc, mode.device=cuda], [mode=onnx]]"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: False)


@pytest.fixture
def built_elsewhere(typed, checkpoint):
    """A variant for a GPU, as another machine would have built it in the same store."""
    done = typed("build", "mode=pyfunc", "mode.device=cuda", "check=false")
    assert done.returncode == 0, done.stderr
    (variant,) = find_variants(mlflow.MlflowClient(), "0")
    return variant.model_id


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"id": "spain", "prompt": "What is the capital of Spain?", "target": "Madrid"}\n')
    return f"prompt_set.path={file}"


SETTINGS = {
    "torch, a GPU": (PyfuncSettings(max_batch_size=1, device="cuda"), NO_GPU),
    "torch, any device": (PyfuncSettings(max_batch_size=1, device="auto"), None),
    "torch, no GPU": (PyfuncSettings(max_batch_size=1, device="cpu"), None),
    "torch, as an earlier version has logged it": (PyfuncSettings(max_batch_size=1), None),
    "onnx, a GPU": (OnnxSettings(max_batch_size=1, execution_provider="cuda"), "mode.execution_provider=cuda is not"),
    "onnx, Windows": (OnnxSettings(max_batch_size=1, execution_provider="dml"), "mode.execution_provider=dml is not"),
    "onnx, no GPU": (OnnxSettings(max_batch_size=1, execution_provider="cpu"), None),
    "onnx, as an earlier version has logged it": (OnnxSettings(max_batch_size=1), None),
}


@pytest.mark.parametrize(("settings", "fault"), SETTINGS.values(), ids=SETTINGS)
def test_a_mode_knows_whether_this_machine_has_its_device(settings, fault):
    assert settings.device_fault is None if fault is None else settings.device_fault.startswith(fault)


def test_a_device_that_is_there_is_no_fault(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: True)
    assert PyfuncSettings(max_batch_size=1, device="cuda").device_fault is None
    assert OnnxSettings(max_batch_size=1, execution_provider="cuda").device_fault is None


@pytest.mark.parametrize(
    "words",
    [
        ("build", "mode=pyfunc", "mode.device=cuda"),
        ("build", "mode=pyfunc", "mode.device=cpu,cuda"),
        ("main", "variants=[[mode=pyfunc]]", "mode.device=cuda"),
    ],
)
def test_a_build_for_a_device_that_is_not_there_is_refused(typed, words):
    done = typed(*words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {NO_GPU}")
    assert not find_variants(mlflow.MlflowClient(), "0")


def test_main_builds_and_ranks_the_others(typed, checkpoint, questions):
    done = typed("main", BOTH, questions, *SHORT, "promotion.smoke=false")
    assert done.returncode == 0, done.stderr
    assert f"Left out: pyfunc-fp32-chat-cuda: {NO_GPU}" in done.stdout
    assert "Promoted onnx-fp32-chat to phi3@champion (version 1)" in done.stdout


@pytest.mark.slow
def test_a_variant_of_another_machine_is_left_out(typed, built_elsewhere, checkpoint, questions):
    left_out = f"Left out: pyfunc-fp32-chat-cuda (models:/{built_elsewhere}) cannot"
    done = typed("main", "variants=[[mode=onnx]]", questions, *SHORT, "promotion.smoke=false")
    assert done.returncode == 0, done.stderr
    assert "Promoted onnx-fp32-chat" in done.stdout
    done = typed("evaluate", questions, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{left_out} run here: {NO_GPU}" in done.stdout
    done = typed("register", questions, "dry_run=true")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_a_variant_of_another_machine_cannot_be_evaluated(typed, built_elsewhere, questions):
    run_id = mlflow.MlflowClient().get_logged_model(built_elsewhere).source_run_id
    for chosen in ([], [f"run_id={run_id}"]):
        done = typed("evaluate", questions, *SHORT, *chosen)
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"error: pyfunc-fp32-chat-cuda (models:/{built_elsewhere}) cannot run here: {NO_GPU}"
        )


@pytest.mark.slow
def test_a_variant_that_cannot_be_smoke_tested_here_does_not_become_champion(typed, checkpoint, questions, monkeypatch):
    """It was scored where its device is, and is better than the other one."""
    build(command_line.compose("build", ["mode=pyfunc"]), checkpoint)
    build(command_line.compose("build", ["mode=onnx", "generation.max_tokens=1"]), checkpoint)
    assert typed("evaluate", questions, *SHORT).stdout.count("Scored ") == 2
    assert "would promote pyfunc-fp32-chat" in typed("register", questions, "dry_run=true").stdout
    monkeypatch.setattr(PyfuncSettings, "device_fault", "it needs a GPU")
    assert "would promote onnx-fp32-chat" in typed("register", questions, "dry_run=true").stdout
    # Without a smoke test, a machine without the device can promote it.
    done = typed("register", questions, "dry_run=true", "promotion.smoke=false")
    assert "would promote pyfunc-fp32-chat" in done.stdout


@pytest.mark.slow
def test_main_ranks_the_others_if_one_fails(typed, checkpoint, questions, monkeypatch):
    score = scoring.score_variant

    def fail_for_prompt(client, variant, *rest, **named):
        if variant.interface.name == "prompt":
            raise RuntimeError("out of memory")
        return score(client, variant, *rest, **named)

    monkeypatch.setattr(evaluate.scoring, "score_variant", fail_for_prompt)
    words = ("variants=[[mode=onnx], [mode=onnx, interface=prompt]]", questions, *SHORT, "promotion.smoke=false")
    for _ in range(2):
        done = typed("main", *words)
        assert done.returncode == 3
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: onnx-fp32-prompt (models:/m-")
        assert line.endswith("could not be scored: RuntimeError: out of memory")
        assert "Leaderboard on questions" in done.stdout
    champion = registry.read(mlflow.MlflowClient(), "phi3").champion
    assert champion.number == "1"
    (run, _) = mlflow.MlflowClient().search_runs(["0"], "attributes.run_name = 'main'")
    assert run.info.status == "FINISHED"


def test_main_ranks_the_others_if_one_cannot_be_built(typed, checkpoint, questions, tmp_path):
    """A folder in ONNX GenAI layout is for one mode only."""
    exported = tmp_path / "exported"
    exported.mkdir()
    export_to_onnx(checkpoint.directory, exported, "fp32", ["hf_remote=false", "hf_token=false"])
    (exported / MANIFEST).unlink(missing_ok=True)
    words = ("model=local", f"model.path={exported}", "variants=[[mode=onnx], [mode=pyfunc]]", questions, *SHORT)
    done = typed("main", *words, "promotion.smoke=false")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: local-pyfunc-fp32-chat could not be built: ")
    assert "Promoted local-onnx-fp32-chat" in done.stdout
