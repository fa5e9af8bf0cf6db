"""What a user reads when a command cannot do what was asked."""

import pytest

FAULTS = {
    "unknown mode": (["build", "mode=onx"], "error: Unknown mode 'onx'. Did you mean 'onnx'?"),
    "nothing to evaluate": (
        ["evaluate"],
        "error: There is no variant to evaluate in this experiment. Build one: `python -m steps.build`",
    ),
    "nothing to register": (
        ["register"],
        "error: There is no variant to register in this experiment. Build one: `python -m steps.build`",
    ),
    "unknown run": (["evaluate", "run_id=abc"], "error: run_id must be the run of a READY variant"),
    "broken prompt set": (["evaluate", "prompt_set.path=broken.jsonl"], "error: broken.jsonl: line 1: broken JSON"),
    "broken prompt set of the main job": (
        ["main", "prompt_set.path=broken.jsonl"],
        "error: broken.jsonl: line 1: broken JSON",
    ),
    "int4 where none is listed": (
        ["main", "variants=[[mode=transformers]]", "precision=int4"],
        "error: precision=int4 is not offered by mode=transformers",
    ),
}


@pytest.mark.parametrize(("command", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_reported_in_one_line_before_any_work(typed, tmp_path, command, sentence):
    (tmp_path / "broken.jsonl").write_text("{\n")
    name, *arguments = command
    done = typed(name, *[argument.replace("broken.jsonl", str(tmp_path / "broken.jsonl")) for argument in arguments])
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(sentence)
    assert "Traceback" not in done.stderr
    assert "Built" not in done.stdout


def test_an_unreachable_server_is_reported_in_one_line(typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    done = typed("build")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The tracking server http://127.0.0.1:9 does not answer (ConnectionRefusedError).")
    assert "secret" not in done.stderr


def test_a_run_that_is_not_in_the_store_is_reported_in_one_line(typed, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    done = typed("build")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The run {'0' * 32} that `mlflow run` started is not in sqlite:///")
