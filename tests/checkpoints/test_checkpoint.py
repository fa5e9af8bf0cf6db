"""Checkpoints in folders: which are accepted, what is taken from them, and which damage is found."""

import shutil
from pathlib import Path

import pytest

from steps.checkpoints.checkpoint import resolve
from steps.config.schema import FolderModel, Model
from steps.digests import digest_file
from steps.errors import StepError
from steps.wrappers.manifest import MANIFEST, read_manifest
from tests.support import cut, flip


def _folder(path):
    return FolderModel(name="local", path=str(path))


def test_the_manifest_has_the_size_and_sha256_of_every_file(checkpoint):
    resolved = resolve(_folder(checkpoint.directory))
    weights = checkpoint.directory / "model.safetensors"
    assert resolved.layout == "huggingface"
    assert resolved.revision is None
    assert resolved.sha256 == checkpoint.sha256
    assert resolved.manifest["model.safetensors"] == {"bytes": weights.stat().st_size, "sha256": digest_file(weights)}
    assert resolved.manifest == read_manifest(checkpoint.directory)
    assert resolved.bytes == sum(file.stat().st_size for file in weights.parent.iterdir() if file.name != MANIFEST)


def test_code_and_pickles_are_left_out_of_the_manifest(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "with_code")
    (folder / "modeling_phi3.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert resolve(_folder(folder)).sha256 == checkpoint.sha256


def test_an_unknown_source_is_refused_with_the_closest_one():
    with pytest.raises(StepError) as refusal:
        resolve(Model(name="local", source="foldr"))
    assert str(refusal.value) == (
        "Unknown model.source 'foldr'. Did you mean 'folder'? Available: folder, hub, miniature, smollm2."
    )


def test_a_folder_without_a_path_is_refused():
    with pytest.raises(StepError, match=r"model\.path must be the folder of a checkpoint, got nothing"):
        resolve(FolderModel(name="local", path=None))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "model.path must be a folder, got"),
        ([], "is not a checkpoint: it must hold config.json and tokenizer.json (huggingface layout) or"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "holds no *.safetensors weights; pickled weights"),
        (["genai_config.json", "tokenizer.json"], "holds no *.onnx weights"),
    ],
)
def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path, files, sentence):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(StepError) as refusal:
        resolve(_folder(folder))
    assert sentence in str(refusal.value)


def test_a_folder_inside_is_not_part_of_the_checkpoint(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "folder")
    (folder / "notes.json").mkdir()
    assert resolve(_folder(folder)).sha256 == checkpoint.sha256


@pytest.mark.parametrize("target", ["nowhere", "tokenizer_config.json"], ids=["broken", "a loop"])
def test_a_broken_link_is_damage(checkpoint, tmp_path, target):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "folder")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to(target)
    with pytest.raises(StepError, match=r"config\.json is damaged: it is a link to a file that does not exist"):
        resolve(_folder(folder))


def _write(text):
    return lambda file: file.write_text(text)


@pytest.mark.parametrize(
    ("name", "damage", "has_manifest", "sentence"),
    [
        ("model.safetensors", flip, True, "model.safetensors was changed: its sha256 is another one"),
        ("model.safetensors", cut, True, "model.safetensors is cut short: "),
        ("tokenizer.json", flip, True, "tokenizer.json was changed"),
        ("generation_config.json", Path.unlink, True, "generation_config.json is missing"),
        ("model.safetensors", cut, False, "model.safetensors is damaged: "),
        ("config.json", _write('{"a": '), False, "config.json is damaged: it is not JSON (Expecting value"),
        ("config.json", _write("[]"), False, "config.json is damaged: it is not a JSON object."),
        (
            "model.safetensors.index.json",
            _write('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
            False,
            "it lists files that do not exist (model-00001-of-00002.safetensors)",
        ),
        (
            "model.safetensors.index.json",
            _write('{"weight_map": {"a": "../folder/model.safetensors"}}'),
            False,
            "it lists files that do not exist (../folder/model.safetensors)",
        ),
        *(
            (
                "model.safetensors.index.json",
                _write(content),
                False,
                "is damaged: its weight_map must be an object with the file of each tensor",
            )
            for content in ("{}", '{"weight_map": []}', '{"weight_map": null}', '{"weight_map": {}}')
        ),
    ],
)
def test_damage_is_reported_with_the_name_of_the_file(checkpoint, tmp_path, name, damage, has_manifest, sentence):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "folder")
    (folder / "README.md").write_text("not part of the checkpoint")
    if not has_manifest:
        (folder / MANIFEST).unlink()
    damage(folder / name)
    with pytest.raises(StepError) as refusal:
        resolve(_folder(folder))
    assert sentence in str(refusal.value)
