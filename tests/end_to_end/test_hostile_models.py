"""What a model could do to whoever loads it: leave a mark when it is unpickled, imported, or served damaged."""

import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import mlflow
import pytest
import yaml

from steps import command_line
from steps.build import build
from steps.store import integrity, names, runs
from steps.store.variants import find_variants


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store, checkpoint):
    """A store with one variant."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "hostile")
        mlflow.create_experiment("hostile", artifact_location=str(folder / "files"))
        build(command_line.compose("build", ["mode=onnx"]), checkpoint)
    return folder


@pytest.fixture
def variant(store, monkeypatch, tmp_path):
    """The variant in a copy of the store, and the folder of its files."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hostile")
    shutil.copytree(store / "files", tmp_path / "kept")
    client = mlflow.MlflowClient()
    (found,) = find_variants(client, runs.experiment_id())
    yield found, Path(client.get_logged_model(found.model_id).artifact_location)
    client.set_logged_model_tags(found.model_id, {names.MANIFEST_SHA256: found.tags[names.MANIFEST_SHA256]})
    shutil.rmtree(store / "files")
    shutil.copytree(tmp_path / "kept", store / "files")


class _Payload:
    """Whoever unpickles this leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def _pickled_python_model(folder, mark):
    (folder / "python_model.pkl").write_bytes(pickle.dumps(_Payload(mark)))
    content = yaml.safe_load((folder / "MLmodel").read_text())
    function = content["flavors"]["python_function"]
    function |= {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    del function["model_code_path"]
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return "python_model.pkl is a pickle, which is never loaded"


def _code_with_a_mark(folder, mark):
    with (folder / "code/phi3_wrappers/model.py").open("a") as code:
        code.write(f"\nimport os\nos.mkdir({str(mark)!r})\n")
    return "code/phi3_wrappers/model.py is too long: "


def _module_with_a_mark(folder, mark):
    (folder / "code/yaml.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    return "code/yaml.py is there, but build did not log it"


@pytest.mark.parametrize("plant", [_pickled_python_model, _code_with_a_mark, _module_with_a_mark])
def test_a_hostile_model_is_refused_before_anything_of_it_runs(variant, typed, tmp_path, plant):
    found, folder = variant
    mark = tmp_path / "mark"
    reason = plant(folder, mark)
    done = typed("evaluate", "evaluate.speed=false")
    assert done.returncode == 1
    assert f"is not what build logged: {reason}" in done.stderr
    (fault,) = integrity.verify(mlflow.MlflowClient(), found)[:1]
    assert fault.startswith(reason)
    assert not mark.exists()
    assert "Traceback" not in done.stderr


def test_the_pickle_would_have_left_its_mark(tmp_path):
    """The payload is no dud."""
    pickle.loads(pickle.dumps(_Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("disguised", [False, True], ids=["as it comes", "with a manifest of its own"])
def test_a_step_never_unpickles_even_what_it_is_made_to_load(variant, typed, tmp_path, monkeypatch, disguised):
    found, folder = variant
    mark = tmp_path / "mark"
    _pickled_python_model(folder, mark)
    client = mlflow.MlflowClient()
    if disguised:
        with mlflow.start_run(run_id=found.run_id):
            client.set_logged_model_tags(
                found.model_id, {names.MANIFEST_SHA256: integrity.seal(client, found.model_id, {})}
            )
        assert integrity.verify(client, found)
    else:
        monkeypatch.setattr(integrity, "verify", lambda *_: [])
    done = typed("evaluate", "evaluate.speed=false")
    assert done.returncode == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("damage", "fault"), [("flip", "was changed: its sha256 is another one"), ("cut", "is cut short: ")]
)
def test_a_damaged_model_is_not_served(variant, tmp_path, damage, fault):
    found, folder = variant
    weights = folder / "artifacts/checkpoint/model.onnx.data"
    if damage == "cut":
        os.truncate(weights, 1000)
    else:
        content = bytearray(weights.read_bytes())
        content[1000] ^= 1
        weights.write_bytes(content)
    words = ["mlflow", "models", "serve", "-m", found.uri, "--env-manager", "local", "--port", "0"]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert re.search(rf"DamagedCheckpoint: The model in \S+ is not what was logged.*model\.onnx\.data {fault}", said)


def test_a_damaged_model_is_not_loaded_by_its_users_either(variant):
    _, folder = variant
    (folder / "artifacts/checkpoint/tokenizer.json").unlink()
    with pytest.raises(Exception, match=r"tokenizer\.json is missing\. Fetch it again, or take another version"):
        mlflow.pyfunc.load_model(str(folder))
