"""What every test gets: its own store and environment, a shared cache, and no network."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest

from steps import output

# `mlflow run` may have started the tests, but its run and store are not theirs. This is not in `isolated`
# because fixtures of a wider scope run before that.
for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HYDRA_", "PHI3_"))]:
    del os.environ[name]
# As for most users: Python keeps its bytecode, next to a model's code too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Hugging Face's client reads this when it is imported, before any fixture runs.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two workers share two cores, and the miniature is too small to profit from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run: a change is what makes a test fail. HYPOTHESIS_PROFILE=default draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

PROJECT = Path(__file__).resolve().parents[1]
SPAIN = "What is the capital of Spain?"
NO_MODEL = ("command_line", "config")
# Their slow tests take minutes.
LONG = ("test_docs.py", "test_main_job.py", "test_benchmark.py")


def pytest_collection_modifyitems(items):
    """Give one worker a file that needs the miniature first, and the other one folders that do not need it.

    Long files come before all others, so that no worker is left with one at the end.
    """
    first = items[0].path if items else None

    def rank(item):
        if item.path.name in LONG and item.get_closest_marker("slow"):
            return 0
        return 1 if item.path == first else 2 if item.path.parent.name in NO_MODEL else 3

    items.sort(key=rank)


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """One cache for all workers of the session, so that the miniature is trained once.

    TEST_CACHES names a folder in which it outlives the session.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "caches"
    folder = Path(os.environ.get("TEST_CACHES", folder))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An empty SQLite store with MLflow's tables, made once and copied for each test."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    code = "import mlflow, sys; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{file}"], check=True, capture_output=True, cwd=file.parent)
    return file


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path, caches, empty_store):
    """Hide the user's MLflow, Hugging Face and Hydra settings, and leave nothing behind."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "HF_", "HYDRA_", "PHI3_"))]:
        monkeypatch.delenv(name)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(empty_store, store / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    # On a busy machine a step would print signs of life between the lines that a test expects.
    monkeypatch.setattr(output, "LONGEST_SILENCE", 600.0)
    monkeypatch.setenv("PHI3_LONGEST_SILENCE", "600")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("PHI3_CACHE_DIR", str(caches / "phi3"))
    monkeypatch.setenv("HF_HOME", str(caches / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(store)
    if "mlflow.tracing" in sys.modules:
        # The tracer keeps the store that it used first.
        sys.modules["mlflow.tracing"].reset()
    yield
    # A step that is called in this process names its experiment to MLflow.
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in before]:
        del os.environ[name]


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
    """Run a step in this process as from the command line: `typed("build", "mode=onnx")` → code, output, errors."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"steps/{name}.py", *arguments])
        try:
            import_module(f"steps.{name}").main()
            code = 0
        except SystemExit as error:
            code = error.code
        return subprocess.CompletedProcess(sys.argv, code, *capfd.readouterr())

    return run


@pytest.fixture
def step():
    """Run a step in its own process, as users do: `step("build", "mode=onnx")`."""

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
    """Print the figures that tests have measured, from all workers."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    figures = [line for report in reports for name, line in getattr(report, "user_properties", []) if name == "figure"]
    if figures:
        terminalreporter.section("figures")
    for line in dict.fromkeys(figures):
        terminalreporter.line(line)


@pytest.fixture
def figure(record_property):
    """Print a figure at the end of the session."""
    return lambda line: record_property("figure", line)
