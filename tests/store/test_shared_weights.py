"""Runs of shared weights: who has which, what is uploaded, what is deleted, in any order."""

import shutil
from pathlib import Path

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steps.store import names, shared_weights
from steps.wrappers.manifest import describe_file
from tests.support import cut, flip

NAME = "model.safetensors"


class Store:
    """An experiment with models that have nothing but shared weights."""

    def __init__(self, folder: Path, name: str):
        self.client, self.folder = mlflow.MlflowClient(), folder
        self.experiment = self.client.create_experiment(name, str(folder / "artifacts" / name))
        self.name, self.uploads = f"{name}-weights", []

    def share(self, content: bytes) -> tuple[str, shared_weights.SharedFiles]:
        """Add a model; return its id and what it shares."""
        run = self.client.create_run(self.experiment, tags={names.FINGERPRINT: "f"})
        model = self.client.create_logged_model(self.experiment, source_run_id=run.info.run_id)
        file = self.folder / NAME
        file.write_bytes(content)
        return model.model_id, shared_weights.share(
            self.client, model.model_id, "weights", {NAME: file}, {NAME: describe_file(file)}
        )

    def lost(self, shared):
        return shared_weights.lost(self.client, shared, shared["files"], "its model")

    def delete_unused(self):
        shared_weights.delete_unused(self.client, self.experiment)

    def runs(self):
        """The active runs of shared weights."""
        place = self.client.get_experiment_by_name(self.name)
        return {run.info.run_id for run in self.client.search_runs([place.experiment_id])}


@pytest.fixture
def store(tmp_path, monkeypatch):
    store = Store(tmp_path, "mine")
    log = mlflow.MlflowClient.log_artifact
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_artifact", lambda client, *rest: (store.uploads.append(rest[0]), log(client, *rest))
    )
    return store


def stored(shared) -> Path:
    return Path(shared["location"]) / NAME


def test_the_same_files_are_uploaded_once(store):
    (_, first), (_, second), (_, other) = (store.share(content) for content in (b"one", b"one", b"two"))
    assert first == second
    assert first["run_id"] != other["run_id"]
    assert store.uploads == [first["run_id"], other["run_id"]]
    assert stored(first).read_bytes() == b"one"
    assert store.lost(first) == []


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(4)))
def test_weights_live_as_long_as_one_variant_uses_them(tmp_path, order):
    store = Store(tmp_path, f"order-{'-'.join(map(str, order))}-{len(list(tmp_path.iterdir()))}")
    models = [store.share(content) for content in (b"one", b"two", b"one", b"two")]
    living = dict(enumerate(models))
    for number in order:
        store.client.delete_logged_model(living.pop(number)[0])
        store.delete_unused()
        assert store.runs() == {shared["run_id"] for _, shared in living.values()}
        assert not [fault for _, shared in living.values() for fault in store.lost(shared)]


def test_a_variant_whose_run_is_restored_has_its_weights_again(store):
    model_id, shared = store.share(b"one")
    run_id = store.client.get_logged_model(model_id).source_run_id
    store.client.delete_run(run_id)
    store.delete_unused()
    assert store.runs() == set()
    store.client.restore_run(run_id)
    store.delete_unused()
    assert store.runs() == {shared["run_id"]}


def test_weights_that_are_deleted_but_still_there_are_used_again(store):
    model_id, shared = store.share(b"one")
    store.client.delete_logged_model(model_id)
    store.delete_unused()
    assert store.share(b"one")[1] == shared
    assert store.runs() == {shared["run_id"]}
    assert len(store.uploads) == 1


def test_a_run_that_is_deleted_while_a_build_begins_to_use_it_comes_back(store, monkeypatch):
    model_id, shared = store.share(b"one")
    store.client.delete_logged_model(model_id)
    provide = shared_weights._provide

    def deleted_by_another_build(*arguments):
        run = provide(*arguments)
        store.delete_unused()
        assert store.runs() == set()
        return run

    monkeypatch.setattr(shared_weights, "_provide", deleted_by_another_build)
    assert store.share(b"one")[1] == shared
    assert store.runs() == {shared["run_id"]}


def test_a_user_who_comes_while_a_run_is_deleted_keeps_it(store, monkeypatch):
    model_id, shared = store.share(b"one")
    store.client.delete_logged_model(model_id)
    used, answers = shared_weights._used, []

    def used_later(*arguments):
        answers.append(used(*arguments))
        return answers[-1] if len(answers) == 1 else {shared["run_id"]}

    monkeypatch.setattr(shared_weights, "_used", used_later)
    store.delete_unused()
    assert store.runs() == {shared["run_id"]}


def test_what_another_build_is_uploading_is_left_alone(store, monkeypatch):
    """It may be cut short yet: the second build uploads to a run of its own."""
    finish = mlflow.MlflowClient.set_terminated
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", lambda *_, **__: None)
    _, first = store.share(b"one")
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", finish)
    _, second = store.share(b"one")
    assert first["run_id"] != second["run_id"]
    store.delete_unused()
    assert store.runs() == {first["run_id"], second["run_id"]}


@pytest.mark.parametrize("is_gone", [True, False])
def test_an_upload_whose_process_was_killed_is_deleted(store, monkeypatch, is_gone):
    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", lambda *_, **__: None)
    model_id, shared = store.share(b"one")
    store.client.delete_logged_model(model_id)
    monkeypatch.setattr(shared_weights.processes, "is_gone", lambda _: is_gone)
    store.delete_unused()
    assert store.runs() == (set() if is_gone else {shared["run_id"]})


def test_an_upload_that_fails_is_never_used(store, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_artifact", fail)
        with pytest.raises(OSError, match="no space"):
            store.share(b"one")
    _, shared = store.share(b"one")
    store.delete_unused()
    assert store.runs() == {shared["run_id"]}
    assert store.lost(shared) == []


def test_runs_of_the_users_own_in_an_experiment_of_that_name_stay(store):
    mine = store.client.create_run(store.client.create_experiment(store.name)).info.run_id
    model_id, _ = store.share(b"one")
    store.client.delete_logged_model(model_id)
    store.delete_unused()
    assert store.runs() == {mine}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "weights/model.safetensors is missing: it is neither in its model nor in {location}"),
        (cut, "weights/model.safetensors is cut short: 1 bytes in {location}, 3 were logged"),
        (
            lambda file: shutil.rmtree(file.parent),
            "weights/model.safetensors is missing: it is neither in its model nor",
        ),
    ],
)
def test_lost_files_are_named_with_the_places_and_uploaded_again(store, damage, fault):
    _, shared = store.share(b"one")
    damage(stored(shared))
    (reported,) = store.lost(shared)
    assert reported.startswith(fault.format(location=shared["location"]))
    assert store.share(b"one")[1] == shared
    assert store.lost(shared) == []


def test_a_changed_file_is_noted_and_uploaded_again(store):
    _, shared = store.share(b"one")
    flip(stored(shared))
    assert store.lost(shared) == []
    (fault,) = shared_weights.faults(store.client, shared, shared["files"], "its model")
    assert fault == f"model.safetensors was changed: its sha256 is another one, in {shared['location']}"
    # From now on without reading it.
    assert store.lost(shared) == [f"weights/model.safetensors was changed in {shared['location']}"]
    store.share(b"one")
    assert store.lost(shared) == []
    assert shared_weights.faults(store.client, shared, shared["files"], "its model") == []


def test_a_pickle_is_refused_wherever_it_is(store):
    _, shared = store.share(b"\x80\x04K\x01.")
    (fault,) = shared_weights.faults(store.client, shared, shared["files"], "its model")
    assert fault == "weights/model.safetensors holds a pickle, which is never loaded"


def test_an_evaluation_reads_a_shared_file_once(store, monkeypatch):
    (_, shared), (_, other) = (store.share(content) for content in (b"one", b"two"))
    reads, download = [], shared_weights.download
    monkeypatch.setattr(shared_weights, "download", lambda *rest: (reads.append(rest[0]), download(*rest))[1])
    with shared_weights.reading_once():
        for each in (shared, shared, other):
            assert shared_weights.faults(store.client, each, each["files"], "its model") == []
        flip(stored(other))
        assert store.lost(other) == []
    assert reads == [shared["location"], other["location"]]
    # Another evaluation reads it again.
    with shared_weights.reading_once():
        assert shared_weights.faults(store.client, other, other["files"], "its model")


def test_a_file_that_was_changed_is_read_again_within_an_evaluation(store):
    _, shared = store.share(b"one")
    flip(stored(shared))
    with shared_weights.reading_once():
        for _ in range(2):
            (fault,) = shared_weights.faults(store.client, shared, shared["files"], "its model")
            assert "model.safetensors was changed" in fault


@pytest.mark.parametrize(
    ("is_shared", "size", "must_be_its_own"),
    [
        (True, None, False),
        pytest.param(True, 2, False, id="an upload that was cut short"),
        pytest.param(True, 3, True, id="an upload that is whole"),
        (False, None, True),
        (False, 2, True),
        (False, 3, True),
    ],
)
def test_which_files_a_model_must_have_itself(store, is_shared, size, must_be_its_own):
    model_id, shared = store.share(b"one")
    if not is_shared:
        store.client.delete_logged_model_tag(model_id, names.WEIGHTS_RUN)
    manifest = {"files": {"MLmodel": {"bytes": 1, "sha256": "0"}}, "shared": shared}
    stored = {"MLmodel": 1} | ({} if size is None else {f"weights/{NAME}": size})
    own, absent = shared_weights.own_and_shared(store.client.get_logged_model(model_id), manifest, stored)
    assert set(own) == {"MLmodel"} | ({f"weights/{NAME}"} if must_be_its_own else set())
    assert absent == ({} if must_be_its_own else shared["files"])
