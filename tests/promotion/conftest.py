"""A store with eight real variants, built once for all tests of this folder."""

import os
import subprocess
import sys

import pytest
from filelock import FileLock

from tests.conftest import PROJECT
from tests.promotion import store


@pytest.fixture(scope="session")
def built(tmp_path_factory, caches, checkpoint, empty_store):
    """The folder of a store with eight variants and no scorecards."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if (folder / "done").exists():
            return folder
        folder.mkdir(exist_ok=True)
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        patch.setenv("PHI3_CACHE_DIR", str(caches / "phi3"))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        tokens = ",".join(str(number) for number in range(12, 20))
        store.build(folder, "mode=onnx", "precision=int4", f"generation.max_tokens={tokens}")
        (folder / "done").touch()
    return folder


@pytest.fixture
def processes():
    """Run tests/promotion/processes.py and return its output: `processes("race", …)`."""

    def run(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.promotion.processes", *map(str, words)],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    return run
