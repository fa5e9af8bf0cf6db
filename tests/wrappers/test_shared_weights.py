"""A checkpoint whose weights are somewhere else: made whole from the cache and the shared place, or refused."""

import json
from pathlib import Path

import pytest

from steps.wrappers.manifest import MANIFEST, POINTER, DamagedCheckpoint, describe_file, write_manifest
from steps.wrappers.shared_weights import cached_file, whole_checkpoint, write_pointer
from tests.support import cut, flip

CONTENT = bytes(range(256)) * 40


class Place:
    """A model's folder without its weights, and the folder where they are."""

    def __init__(self, folder: Path):
        self.model, self.shared = folder / "model", folder / "shared"
        self.model.mkdir()
        self.shared.mkdir()
        (self.model / "config.json").write_text("{}")
        self.weights, self.own = self.shared / "weights.safetensors", self.model / "weights.safetensors"
        self.own.write_bytes(CONTENT)
        write_manifest(self.model)
        self.own.rename(self.weights)
        write_pointer(self.model, str(self.shared), [self.own.name])

    @property
    def cached(self):
        entry = json.loads((self.model / MANIFEST).read_text())[self.own.name]
        return cached_file(self.own.name, entry)

    def read(self):
        """The files that an engine sees, without the manifest."""
        with whole_checkpoint(str(self.model)) as folder:
            return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.name != MANIFEST}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    return Place(tmp_path)


WHOLE = {"config.json": b"{}", "weights.safetensors": CONTENT}


def test_what_is_missing_is_fetched_once(place):
    assert place.read() == WHOLE
    place.weights.unlink()
    assert place.read() == WHOLE
    assert {file.name for file in place.cached.parents[1].iterdir()} == {
        place.cached.parent.name,
        f"{place.cached.parent.name}.lock",
    }
    assert not place.own.exists()


def test_what_a_killed_download_has_left_is_removed(place):
    unfinished = place.cached.parent / "download-abc" / place.own.name
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(CONTENT[:100])
    assert place.read() == WHOLE
    assert list(place.cached.parent.iterdir()) == [place.cached]


def test_a_model_with_all_of_its_files_needs_nothing_else(place, tmp_path):
    place.weights.rename(place.own)
    place.shared.rmdir()
    with whole_checkpoint(str(place.model)) as folder:
        assert folder == str(place.model)
    assert not (tmp_path / "cache").exists()


def test_the_beginning_of_an_upload_is_not_read(place):
    place.own.write_bytes(CONTENT[:100])
    assert place.read() == WHOLE


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_cache_is_fetched_again(place, damage):
    place.read()
    damage(place.cached)
    assert place.read() == WHOLE
    assert place.cached.read_bytes() == CONTENT


def test_a_changed_file_of_the_models_own_is_refused(place):
    place.own.write_bytes(CONTENT)
    flip(place.own)
    with pytest.raises(DamagedCheckpoint, match=r"^weights.safetensors was changed"):
        place.read()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "weights.safetensors is missing from {shared}"),
        (flip, "weights.safetensors was changed: its sha256 is another one, in {shared}"),
        (cut, "weights.safetensors is cut short: 5120 of 10240 bytes, in {shared}"),
    ],
)
def test_a_damaged_shared_file_is_named_with_the_places(place, damage, fault):
    damage(place.weights)
    with pytest.raises(DamagedCheckpoint) as refusal:
        place.read()
    expected = f"{fault}, and the cache does not have it ({{cached}})"
    assert str(refusal.value) == expected.format(shared=place.shared, cached=place.cached)
    assert not place.cached.exists()


def test_a_place_that_cannot_be_reached_is_named(place):
    write_pointer(place.model, "unknown://server/weights", [place.own.name])
    with pytest.raises(
        DamagedCheckpoint, match=r"^weights.safetensors cannot be read from unknown://server/weights \("
    ):
        place.read()


@pytest.mark.parametrize("content", ["", "[]", '{"files": ["weights.safetensors"]}', '{"location": "x", "files": 3}'])
def test_a_pointer_that_cannot_be_read_is_refused(place, content):
    (place.model / POINTER).write_text(content)
    with pytest.raises(DamagedCheckpoint, match=f"^{POINTER} cannot be read"):
        place.read()


@pytest.mark.parametrize("name", ["../weights.safetensors", "other.safetensors", ".."])
def test_only_files_of_the_manifest_are_fetched(place, name):
    """Also not to a place outside the cache that a manifest names."""
    entries = json.loads((place.model / MANIFEST).read_text())
    if name.startswith("."):
        entries[name] = describe_file(place.weights)
        (place.model / MANIFEST).write_text(json.dumps(entries))
    write_pointer(place.model, str(place.shared), [name])
    with pytest.raises(DamagedCheckpoint, match=r"weights.safetensors is missing"):
        place.read()


def test_a_sha256_that_is_a_path_is_not_one(place, tmp_path):
    entries = json.loads((place.model / MANIFEST).read_text())
    entries[place.own.name]["sha256"] = "../../outside"
    (place.model / MANIFEST).write_text(json.dumps(entries))
    with pytest.raises(DamagedCheckpoint, match="is missing"):
        place.read()
    assert not (tmp_path / "outside").exists()


def test_a_cache_that_cannot_be_written_is_named(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DamagedCheckpoint, match=r"cannot be written to the cache .*: set PHI3_CACHE_DIR"):
        place.read()
