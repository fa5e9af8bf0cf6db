"""A store with three variants of the miniature, in which `evaluate` runs."""

import shutil
from pathlib import Path

import mlflow
import pytest

from steps import build, command_line
from steps.evaluation import scorecard
from steps.store.variants import find_variants
from tests.support import enter_store

CHOICES = (
    ["interface=prompt", "prompting=brief"],
    [],
    ["generation=sampled", "generation.temperature=1"],
)


class Store:
    """The store of the three variants. Each property is a variant as it is now."""

    @property
    def variants(self):
        return {variant.name: variant for variant in find_variants(mlflow.MlflowClient(), "0")}

    @property
    def greedy(self):
        return self.variants["onnx-fp32-chat"]

    @property
    def sampled(self):
        return self.variants["onnx-fp32-chat-t1"]

    @property
    def prompt(self):
        return self.variants["onnx-fp32-prompt-brief"]

    def scorecard_bytes(self, variant, sha256):
        file = mlflow.artifacts.download_artifacts(f"runs:/{variant.run_id}/{scorecard.file(sha256)}")
        return Path(file).read_bytes()

    def latest_evaluation(self):
        """Return the run of the latest evaluation."""
        runs = mlflow.search_runs(
            filter_string="attributes.run_name = 'evaluate-mine'",
            order_by=["start_time DESC"],
            max_results=1,
            output_format="list",
        )
        return runs[0]


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory, empty_store, caches, checkpoint):
    """The folder of the store, built once."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(patch, folder, caches)
        for choices in CHOICES:
            build.build(command_line.compose("build", ["mode=onnx", *choices]), checkpoint)
    return folder


@pytest.fixture
def store(built_folder, caches, monkeypatch):
    """The store of three variants, as the one that steps use."""
    enter_store(monkeypatch, built_folder, caches)
    return Store()


@pytest.fixture
def evaluate(typed):
    """Run `evaluate` as if it were typed, without speed, which has its own tests."""
    return lambda *words: typed("evaluate", *words, "evaluate.speed=false")
