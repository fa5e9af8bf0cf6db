"""A model that `build` sealed passes the check, and any later change is reported with the name of the file."""

import json
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import mlflow
import pytest
import yaml

from steps import command_line
from steps.build import build
from steps.digests import digest_file
from steps.evaluation import asking
from steps.store import integrity, names
from steps.store.variants import to_variant
from tests.support import append, cut, flip

MODES = ("transformers", "pyfunc", "onnx")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, empty_store, checkpoint):
    """A store with one variant of each mode."""
    folder = tmp_path_factory.mktemp("sealed")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "sealed")
        mlflow.create_experiment("sealed", artifact_location=str(folder / "files"))
        ids = {mode: build(command_line.compose("build", [f"mode={mode}"]), checkpoint) for mode in MODES}
    return uri, ids


class Stored:
    """A variant and the folder of its files."""

    def __init__(self, sealed, mode):
        uri, ids = sealed
        self.client = mlflow.MlflowClient(uri)
        model = self.client.get_logged_model(ids[mode])
        self.variant, self.folder = to_variant(model), Path(model.artifact_location)

    def verify(self):
        return integrity.verify(self.client, self.variant)


@pytest.fixture
def stored(sealed, monkeypatch):
    """`stored(mode)` → a variant. Its files and manifest are restored after the test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sealed[0])
    home = Path(sealed[0].removeprefix("sqlite:///")).parent
    shutil.copytree(home / "files", home / "kept")
    yield lambda mode: Stored(sealed, mode)
    shutil.rmtree(home / "files")
    (home / "kept").rename(home / "files")


@pytest.mark.parametrize("mode", MODES)
def test_a_built_model_has_no_faults(stored, mode):
    model = stored(mode)
    assert model.verify() == []
    manifest = json.loads(_manifest_file(model).read_text())
    weights = {"transformers": "model/model.safetensors", "pyfunc": "artifacts/checkpoint/model.safetensors"}
    assert {weights.get(mode, "artifacts/checkpoint/model.onnx.data"), "MLmodel", "conda.yaml"} <= set(
        manifest["files"]
    )
    if mode != "transformers":
        assert {"code/phi3_wrappers/model.py", f"{mode}_model.py"} <= set(manifest["files"])
    assert not [name for name in manifest["files"] if "__pycache__" in name]


def test_loading_a_model_in_place_causes_no_faults(stored):
    """Loading a model makes Python write bytecode into the folder of its code, which `verify` removes."""
    model = stored("onnx")
    with asking.loaded(str(model.folder)):
        assert list(model.folder.rglob("__pycache__"))
    assert model.verify() == []


def test_a_model_on_a_server_is_downloaded_and_removed_afterwards(stored, monkeypatch, tmp_path):
    model, client = stored("onnx"), mlflow.MlflowClient()
    with integrity.local_copy(client, model.variant) as folder:
        assert Path(folder) == model.folder
    monkeypatch.setattr(integrity, "local_folder", lambda location: None)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    terminal = sys.stderr
    with integrity.local_copy(client, model.variant) as folder, asking.loaded(folder) as loaded:
        assert sys.stderr is terminal  # the block's own output is not hidden
        assert temporary in Path(folder).parents
        assert loaded.predict({"messages": [{"role": "user", "content": "Hello"}]})
    assert list(temporary.iterdir()) == []


def _manifest_file(model):
    (file,) = model.folder.parents[2].glob(f"{model.variant.run_id}/artifacts/{integrity.MANIFEST}")
    return file


@pytest.mark.parametrize(
    ("mode", "name", "damage", "fault"),
    [
        ("pyfunc", "artifacts/checkpoint/model.safetensors", flip, "was changed: sha256"),
        ("pyfunc", "artifacts/checkpoint/model.safetensors", cut, "is cut short: "),
        ("pyfunc", "artifacts/checkpoint/tokenizer.json", flip, "was changed: sha256"),
        ("transformers", "model/model.safetensors", flip, "was changed: sha256"),
        ("onnx", "artifacts/checkpoint/model.onnx", flip, "was changed: sha256"),
        ("onnx", "artifacts/checkpoint/model.onnx.data", cut, "is cut short: "),
        ("onnx", "MLmodel", append, "is too long: "),
        ("onnx", "onnx_model.py", append, "is too long: "),
        ("onnx", "code/phi3_wrappers/contract/requests.py", flip, "was changed: sha256"),
        ("onnx", "code/phi3_wrappers/engines/scheduler.py", Path.unlink, "is missing"),
        ("onnx", "code/phi3_wrappers/jinja2.py", Path.touch, "is there, but build did not log it"),
    ],
)
def test_damage_is_reported_with_the_name_of_the_file(stored, mode, name, damage, fault):
    model = stored(mode)
    damage(model.folder / name)
    (reported,) = model.verify()
    assert reported.startswith(f"{name} {fault}")


def test_all_damaged_files_are_reported_at_once(stored):
    model = stored("onnx")
    flip(model.folder / "artifacts/checkpoint/model.onnx")
    cut(model.folder / "code/phi3_wrappers/model.py")
    assert len(model.verify()) == 2


def test_a_changed_or_missing_manifest_is_reported(stored):
    model = stored("onnx")
    file = _manifest_file(model)
    manifest = json.loads(file.read_text())
    flip(model.folder / "artifacts/checkpoint/model.onnx")
    changed = digest_file(model.folder / "artifacts/checkpoint/model.onnx")
    manifest["files"]["artifacts/checkpoint/model.onnx"]["sha256"] = changed
    file.write_text(json.dumps(manifest))
    assert model.verify() == [f"{integrity.MANIFEST} of run {model.variant.run_id} was changed"]
    file.unlink()
    (reported,) = model.verify()
    assert reported.startswith(f"{integrity.MANIFEST} of run {model.variant.run_id} cannot be read (")


def test_planted_bytecode_is_removed(stored):
    model = stored("onnx")
    planted = model.folder / "code/phi3_wrappers/__pycache__/model.cpython-311.pyc"
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(b"anything")
    assert model.verify() == []
    assert not planted.exists()


def test_bytecode_that_another_process_writes_meanwhile_is_no_fault(stored, monkeypatch):
    """A server that starts loads the model while it is checked."""
    model = stored("onnx")
    written = iter(["model", "chat", "engines/prefix_cache"])
    stored_files = mlflow.MlflowClient.list_logged_model_artifacts

    def written_before_it_is_listed(client, model_id, path=None):
        if path is None and (name := next(written, None)):
            file = model.folder / "code/phi3_wrappers" / name
            (file.parent / "__pycache__").mkdir(exist_ok=True)
            (file.parent / f"__pycache__/{file.name}.cpython-311.pyc").touch()
        return stored_files(client, model_id, path)

    monkeypatch.setattr(mlflow.MlflowClient, "list_logged_model_artifacts", written_before_it_is_listed)
    assert model.verify() == []
    assert next(written, None) is None


def test_bytecode_that_cannot_be_removed_is_a_fault(stored, monkeypatch):
    model = stored("onnx")
    (model.folder / "code/phi3_wrappers/__pycache__").mkdir(exist_ok=True)
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **rest: "__pycache__" in str(folder) or remove(folder, **rest))
    monkeypatch.setattr(integrity, "PAUSE", 0.0)
    assert model.verify() == ["code/phi3_wrappers/__pycache__ is there, but build did not log it"]


def _pickled_file(folder):
    (folder / "python_model.pkl").write_bytes(pickle.dumps("model"))
    return "python_model.pkl is a pickle, which is never loaded"


def _torch_weights(folder):
    (folder / "artifacts/checkpoint/PYTORCH_MODEL.BIN").write_bytes(pickle.dumps("weights"))
    return "artifacts/checkpoint/PYTORCH_MODEL.BIN is a pickle, which is never loaded"


def _disguised_pickle(folder):
    (folder / "artifacts/checkpoint/tokenizer.json").write_bytes(pickle.dumps("tokenizer"))
    return "artifacts/checkpoint/tokenizer.json holds a pickle, which is never loaded"


def _pickle_flavor(folder):
    _edit(folder, python_model="artifacts/checkpoint/tokenizer.json")
    return "MLmodel names a pickled model (artifacts/checkpoint/tokenizer.json), which is never loaded"


def _other_loader(folder):
    _edit(folder, loader_module="mlflow.sklearn")
    return "MLmodel would be loaded by mlflow.sklearn"


def _edit(folder, **changes):
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["flavors"]["python_function"] |= changes
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("plant", [_pickled_file, _torch_weights, _disguised_pickle, _pickle_flavor, _other_loader])
def test_pickles_are_refused_even_if_the_manifest_lists_them(stored, plant):
    model = stored("onnx")
    fault = plant(model.folder)
    with mlflow.start_run(run_id=model.variant.run_id):
        forged = integrity.seal(model.client, model.variant.model_id, {})
    model.client.set_logged_model_tags(model.variant.model_id, {names.MANIFEST_SHA256: forged})
    assert model.verify() == [fault]
