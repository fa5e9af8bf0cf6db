"""Files that are gone are named, and the workflow goes on."""

import shutil
from pathlib import Path

import mlflow
import pytest

from steps.evaluation import scorecard
from steps.store.variants import find_variants
from tests.support import cut, make_row, write_prompt_set


@pytest.fixture
def words(tmp_path):
    rows = [make_row("a"), make_row("b", "What is the capital of France?", "Paris")]
    return [write_prompt_set(tmp_path / "mine.jsonl", rows)[0], "evaluate.speed=false"]


@pytest.fixture
def main(typed, words):
    """Run the main job with one variant."""
    return lambda: typed("main", *words, "promotion.smoke=false", 'variants=[["mode=onnx"]]')


def variants():
    return find_variants(mlflow.MlflowClient(), "0")


def folder_of(location):
    return Path(location.removeprefix("file://"))


def scorecard_file(variant):
    key = next(key for key in variant.tags if key.startswith("phi3.scorecard."))
    folder = folder_of(mlflow.get_run(variant.run_id).info.artifact_uri)
    return Path(folder, scorecard.file(key.rpartition(".")[2]))


@pytest.mark.slow
def test_all_files_are_gone_and_main_builds_again(main, typed, words):
    assert main().returncode == 0
    (old,) = variants()
    # Not the whole of mlruns, which the tests share.
    shutil.rmtree(folder_of(mlflow.MlflowClient().get_logged_model(old.model_id).artifact_location))
    shutil.rmtree(folder_of(mlflow.get_run(old.run_id).info.artifact_uri))
    lost = f"{old.name} ({old.uri}) is refused: all files of its model are missing: there is nothing in "
    done = typed("evaluate", *words)
    assert (done.returncode, done.stderr.startswith(f"error: {lost}")) == (1, True)
    assert typed("register", words[0]).returncode == 1
    done = main()
    assert done.returncode == 0, done.stderr
    assert f"Not reused: {old.name} ({old.uri}): all files of its model are missing" in done.stdout
    assert f"Left out: {lost}" in done.stdout
    assert "is broken: all files of its model are missing" in done.stdout
    done = main()
    assert done.returncode == 0, done.stderr
    assert f"Ready already: {variants()[-1].name} ({variants()[-1].uri})" in done.stdout
    assert "Nothing changes: the champion" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, cut], ids=["gone", "cut short"])
def test_a_lost_scorecard_is_asked_for_again(main, typed, words, damage):
    assert main().returncode == 0
    (variant,) = variants()
    damage(scorecard_file(variant))
    done = typed("evaluate", *words)
    assert done.returncode == 0, done.stderr
    assert f"The scorecard of {variant.name} cannot be read, so it is asked again: " in done.stdout
    assert f"Scored {variant.name}" in done.stdout
    assert typed("register", words[0], "promotion.smoke=false").returncode == 0


@pytest.mark.slow
def test_one_lost_file_of_a_model_is_named(main):
    assert main().returncode == 0
    (variant,) = variants()
    location = folder_of(mlflow.MlflowClient().get_logged_model(variant.model_id).artifact_location)
    (location / "MLmodel").unlink()
    done = main()
    assert done.returncode == 0, done.stderr
    assert f"Not reused: {variant.name} ({variant.uri}): MLmodel is missing from {location}" in done.stdout
    assert len(variants()) == 2


@pytest.mark.slow
def test_a_deleted_run_is_built_again_and_promoted(main):
    assert main().returncode == 0
    (variant,) = variants()
    mlflow.MlflowClient().delete_run(variant.run_id)
    done = main()
    assert done.returncode == 0, done.stderr
    assert f"Built {variant.name}" in done.stdout
