"""A store with two champions: `talk` takes conversations, `text` takes prompts."""

import shutil

import mlflow
import pytest

from steps import build, command_line
from steps.promotion import registry
from steps.promotion.candidate import Candidate
from steps.store.names import CHAMPION
from steps.store.variants import find_variants
from tests.support import enter_store

CHAMPIONS = {"talk": "chat", "text": "prompt"}


@pytest.fixture(scope="session")
def champions_folder(tmp_path_factory, empty_store, caches, checkpoint):
    folder = tmp_path_factory.mktemp("champions")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(patch, folder, caches)
        for interface in CHAMPIONS.values():
            choices = [f"interface={interface}", "generation.max_tokens=12"]
            build.build(command_line.compose("build", ["mode=onnx", "precision=int4", *choices]), checkpoint)
        promote(CHAMPIONS)
    return folder


@pytest.fixture
def champions(champions_folder, caches, monkeypatch):
    enter_store(monkeypatch, champions_folder, caches)
    return champions_folder


def promote(champions):
    """Give each name a champion: the variant of an interface."""
    client = mlflow.MlflowClient()
    for name, interface in champions.items():
        variant = next(each for each in find_variants(client, "0") if each.config.interface == interface)
        candidate = Candidate(variant.name, variant.model_id, variant.fingerprint, {})
        version = registry.create(client, registry.read(client, name), candidate, {}, "")
        registry.set_alias(client, registry.read(client, name), CHAMPION, version)
