"""What every test gets: a store, caches and an environment of its own, and no network."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

# The tests may themselves be an entry point of `mlflow run`: its run and store are not theirs. Fixtures wider than
# a test come before `isolated`, so this stands here.
for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HYDRA_", "PHI3_"))]:
    del os.environ[name]
# As most users have it: Python keeps what it has compiled, beside a model's code too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Hugging Face's client reads this when it is imported, which is before any fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two workers share two cores, and the miniature is too small for threads to help it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT = Path(__file__).resolve().parents[1]
SPAIN = "What is the capital of Spain?"


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """One cache for the whole session and all of its workers: the miniature is trained once.

    TEST_CACHES names a folder to keep it in from session to session.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "caches"
    folder = Path(os.environ.get("TEST_CACHES", folder))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated and empty SQLite store, made once and copied for each test."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = "import mlflow, sys; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{file}"], check=True, capture_output=True, cwd=file.parent)
    return file


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path, caches, empty_store):
    """No test sees the user's MLflow, Hugging Face or Hydra settings, nor leaves anything behind."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HF_", "HYDRA_", "PHI3_"))]:
        monkeypatch.delenv(name)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(empty_store, store / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("PHI3_CACHE_DIR", str(caches / "phi3"))
    monkeypatch.setenv("HF_HOME", str(caches / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(store)
    if "mlflow.tracing" in sys.modules:
        # The tracer keeps the store that it was first used with.
        sys.modules["mlflow.tracing"].reset()


@pytest.fixture(scope="session")
def checkpoint(caches):
    """The miniature, trained once for the session."""
    from steps.checkpoints.checkpoint import resolve
    from steps.config.schema import MiniatureModel

    before = os.environ.get("PHI3_CACHE_DIR")
    os.environ["PHI3_CACHE_DIR"] = str(caches / "phi3")
    try:
        return resolve(MiniatureModel(name="miniature", seed=0))
    finally:
        os.environ.pop("PHI3_CACHE_DIR")
        if before is not None:
            os.environ["PHI3_CACHE_DIR"] = before


@pytest.fixture
def typed(monkeypatch, capfd):
    """Run a step in this process as if it were typed: `typed("build", "mode=onnx")` → code, output, errors."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"steps/{name}.py", *arguments])
        try:
            import_module(f"steps.{name}").main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return run


@pytest.fixture
def step():
    """Run a step as people do, in a process of its own: `step("build", "mode=onnx")`."""

    def run(name, *arguments, cwd=PROJECT, **environment):
        return subprocess.run(
            [sys.executable, "-m", f"steps.{name}", *arguments],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def pytest_terminal_summary(terminalreporter):
    """The figures that tests have measured, from all workers."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    figures = [line for report in reports for name, line in getattr(report, "user_properties", []) if name == "figure"]
    if figures:
        terminalreporter.section("figures")
    for line in dict.fromkeys(figures):
        terminalreporter.line(line)
