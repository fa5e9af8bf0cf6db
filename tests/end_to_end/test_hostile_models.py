"""What a hostile or damaged model could do: leave a mark when it is unpickled or imported, or be served."""

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
from tests.support import cut, flip


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store, checkpoint):
    """Return the folder of a store with one variant."""
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
    """Return the variant; its files and its manifest are restored after the test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hostile")
    shutil.copytree(store / "files", tmp_path / "backup")
    client = mlflow.MlflowClient()
    (variant,) = find_variants(client, runs.experiment_id())
    yield variant
    client.set_logged_model_tags(variant.model_id, {names.MANIFEST_SHA256: variant.tags[names.MANIFEST_SHA256]})
    shutil.rmtree(store / "files")
    shutil.copytree(tmp_path / "backup", store / "files")


@pytest.fixture
def folder(variant):
    """Return the folder of the variant's files."""
    return Path(mlflow.MlflowClient().get_logged_model(variant.model_id).artifact_location)


class Payload:
    """Make a folder, as a mark, when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def plant_pickled_model(folder, mark):
    """Have MLflow unpickle a payload when it loads the model; return the expected fault, as do the next two."""
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    content = yaml.safe_load((folder / "MLmodel").read_text())
    function = content["flavors"]["python_function"]
    function |= {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    del function["model_code_path"]
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return "python_model.pkl is a pickle, which is never loaded"


def plant_code_in_wrapper(folder, mark):
    """Append code that leaves a mark to the wrapper."""
    with (folder / "code/phi3_wrappers/model.py").open("a") as code:
        code.write(f"\nimport os\nos.mkdir({str(mark)!r})\n")
    return "code/phi3_wrappers/model.py is too long: "


def plant_module(folder, mark):
    """Add a module that leaves a mark when it is imported in place of a library."""
    (folder / "code/yaml.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    return "code/yaml.py is there, but build did not log it"


@pytest.mark.parametrize("plant", [plant_pickled_model, plant_code_in_wrapper, plant_module])
def test_a_hostile_model_is_refused_before_any_of_it_runs(variant, folder, typed, tmp_path, plant):
    mark = tmp_path / "mark"
    reason = plant(folder, mark)
    done = typed("evaluate", "evaluate.speed=false")
    assert done.returncode == 1
    assert re.search(rf"is (not what build logged|refused): {re.escape(reason)}", done.stderr)
    (fault,) = integrity.verify(mlflow.MlflowClient(), variant)[:1]
    assert fault.startswith(reason)
    assert not mark.exists()
    assert "Traceback" not in done.stderr


def test_unpickling_the_payload_leaves_a_mark(tmp_path):
    """Without this, the tests of the mark would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("forged_manifest", [False, True], ids=["manifest not checked", "manifest forged"])
def test_a_step_never_unpickles_even_if_the_manifest_is_forged_or_not_checked(
    variant, folder, typed, tmp_path, monkeypatch, forged_manifest
):
    mark = tmp_path / "mark"
    plant_pickled_model(folder, mark)
    client = mlflow.MlflowClient()
    if forged_manifest:
        with mlflow.start_run(run_id=variant.run_id):
            manifest_sha256 = integrity.seal(client, variant.model_id, {})
        client.set_logged_model_tags(variant.model_id, {names.MANIFEST_SHA256: manifest_sha256})
        assert integrity.verify(client, variant)
    else:
        monkeypatch.setattr(integrity, "verify", lambda *_: [])
    done = typed("evaluate", "evaluate.speed=false")
    assert done.returncode == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("damage", "fault"), [(flip, "was changed: its sha256 is another one"), (cut, "is cut short: ")]
)
def test_a_damaged_model_is_not_served(variant, folder, damage, fault):
    damage(folder / "artifacts/checkpoint/model.onnx.data")
    command = ["mlflow", "models", "serve", "-m", variant.uri, "--env-manager", "local", "--port", "0"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert re.search(rf"DamagedCheckpoint: The model in \S+ is not what was logged.*model\.onnx\.data {fault}", output)


def test_a_damaged_model_is_not_loaded_by_its_users(variant, folder):
    (folder / "artifacts/checkpoint/tokenizer.json").unlink()
    with pytest.raises(Exception, match=r"tokenizer\.json is missing\. Fetch it again, or take another version"):
        mlflow.pyfunc.load_model(str(folder))
