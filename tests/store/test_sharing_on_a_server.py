"""One copy of the weights on a real `mlflow server`: what variants add, how they load, damage, and promotion."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

from steps import command_line, register
from steps.build import build_or_reuse
from steps.checkpoints.checkpoint import resolve
from steps.evaluation import prompt_set
from steps.promotion import registry
from steps.store import integrity, names, shared_weights
from steps.store.variants import find_variants, read_variant
from steps.wrappers.manifest import describe_file
from tests.mlflow_server import running
from tests.modes.random_phi3 import random_phi3
from tests.promotion.store import write_prompt_set, write_scorecard
from tests.store.test_shared_files import MESSAGES, SIZES
from tests.support import KILLED, cut, flip

pytestmark = pytest.mark.slow

PYFUNC, ONNX = ["mode=pyfunc"], ["mode=onnx", "precision=int8"]
BRIEF = "prompting=brief"


class Store:
    """A server with three variants, and what each build added to its artifacts."""

    def __init__(self, server, source: Path):
        self.address, self.artifacts, self.source = server.address, server.folder / "artifacts", source
        self.database, self.added, self.ids = f"sqlite:///{server.folder}/mlflow.db", {}, {}

    def build(self, *overrides: str) -> str:
        words = ["model=local", f"model.path={self.source}", "check=false", *overrides]
        config, before = command_line.compose("build", words), self.files()
        model_id = build_or_reuse(config, resolve(config.model))
        self.ids.setdefault(overrides, model_id)
        added = {path: size for path, size in self.files().items() if path not in before}
        self.added.setdefault(overrides, added)
        return model_id

    def files(self) -> dict[str, int]:
        files = [file for file in self.artifacts.rglob("*") if file.is_file()]
        return {str(file.relative_to(self.artifacts)): file.stat().st_size for file in files}

    def shared(self, *overrides: str) -> Path:
        """The one file that variants share."""
        (path,) = [path for path in self.added[overrides] if "/weights/" in path]
        return self.artifacts / path

    def variant(self, *overrides: str):
        return read_variant(mlflow.MlflowClient(), self.ids[overrides])


@pytest.fixture(scope="module")
def store(checkpoint, tmp_path_factory):
    source = random_phi3(tmp_path_factory.mktemp("source") / "phi3", checkpoint.directory, **SIZES)
    folder = tmp_path_factory.mktemp("server")
    with running(folder) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        patch.setenv("PHI3_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        store = Store(server, source)
        for overrides in ([*PYFUNC], [*PYFUNC, BRIEF], [*ONNX]):
            store.build(*overrides)
        yield store


@pytest.fixture(autouse=True)
def here(store, monkeypatch, tmp_path):
    """The server's store, and a machine with an empty cache."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.address)
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def answer(uri: str) -> str:
    return mlflow.pyfunc.load_model(uri).predict(MESSAGES)["choices"][0]["message"]["content"]


def test_a_further_variant_adds_at_most_two_percent(store, figure):
    first, further = (sum(store.added[variant].values()) for variant in ((*PYFUNC,), (*PYFUNC, BRIEF)))
    figure(f"on a server: the first variant adds {first:,} bytes, a further one {further:,}")
    assert further <= 0.02 * sum(file.stat().st_size for file in store.source.iterdir())
    assert store.shared(*PYFUNC).stat().st_size > 0.9 * first
    assert not [path for path in store.added[*PYFUNC, BRIEF] if "/weights/" in path]


def test_a_variant_loads_in_a_process_that_knows_only_mlflow(store, tmp_path):
    code = (
        "import importlib.util, mlflow, sys; assert importlib.util.find_spec('steps') is None; "
        f"print(mlflow.pyfunc.load_model(sys.argv[1]).predict({MESSAGES})['choices'][0]['message']['content'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, f"models:/{store.ids[*ONNX]}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_a_shared_file_is_downloaded_once(store, monkeypatch):
    downloads, download = [], mlflow.artifacts.download_artifacts

    def counted(**arguments):
        downloads.append(arguments["artifact_uri"])
        return download(**arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", counted)
    assert answer(f"models:/{store.ids[*PYFUNC]}")
    assert answer(f"models:/{store.ids[*PYFUNC, BRIEF]}")
    assert len([uri for uri in downloads if "/weights/" in uri]) == 1


def refuse_to_load(variant, fault: str) -> None:
    with pytest.raises(Exception, match=f"{fault}.*mlflow-artifacts:/.*, and the cache does not have it"):
        mlflow.pyfunc.load_model(variant.uri)


@pytest.mark.parametrize(("damage", "fault"), [(Path.unlink, "is missing"), (cut, "is cut short")])
def test_a_lost_shared_file_is_named_without_reading_it(store, tmp_path, typed, damage, fault):
    variant, shared = store.variant(*PYFUNC), store.shared(*PYFUNC)
    whole = shutil.copy(shared, tmp_path / "whole")
    damage(shared)
    (reported,) = integrity.missing(mlflow.MlflowClient(), variant)
    assert reported.startswith(f"artifacts/checkpoint/model.safetensors {fault}")
    done = typed("evaluate", f"run_id={variant.run_id}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"({variant.uri}) is refused: {reported}. Build and evaluate it again" in done.stderr
    refuse_to_load(variant, f"model.safetensors {fault}")
    shutil.copy(whole, shared)
    assert integrity.missing(mlflow.MlflowClient(), variant) == []


def test_a_changed_shared_file_is_named_and_the_next_build_uploads_it_again(store, capsys):
    client, variant, shared = mlflow.MlflowClient(), store.variant(*ONNX), store.shared(*ONNX)
    whole = shared.read_bytes()
    flip(shared)
    assert integrity.missing(client, variant) == []
    (reported,) = integrity.verify(client, variant)
    assert reported.startswith(f"{shared.name} was changed: its sha256 is another one, in mlflow-artifacts:/")
    refuse_to_load(variant, f"{shared.name} was changed")
    # From now on without reading it, so that `build` does not reuse the variant.
    assert "was changed in mlflow-artifacts:/" in integrity.missing(client, variant)[0]
    before = store.files()
    store.build(*ONNX)
    assert f"Not reused: {variant.name} ({variant.uri}): " in capsys.readouterr().out
    assert not [path for path in store.files() if "/weights/" in path and path not in before]
    assert shared.read_bytes() == whole
    assert integrity.missing(client, variant) == []


def test_a_changed_pointer_is_noticed(store):
    client, variant = mlflow.MlflowClient(), store.variant(*PYFUNC)
    (pointer,) = [path for path in store.added[*PYFUNC] if path.endswith("shared_weights.json")]
    file = store.artifacts / pointer
    before = file.read_bytes()
    flip(file)
    (reported,) = integrity.verify(client, variant)
    assert reported.startswith("artifacts/checkpoint/shared_weights.json was changed")
    file.write_bytes(before)


def test_without_the_tag_a_model_must_have_its_files_itself(store):
    client, variant = mlflow.MlflowClient(), store.variant(*PYFUNC)
    run_id = variant.tags[names.WEIGHTS_RUN]
    client.delete_logged_model_tag(variant.model_id, names.WEIGHTS_RUN)
    (reported,) = integrity.missing(client, variant)
    assert reported.startswith("artifacts/checkpoint/model.safetensors is missing from mlflow-artifacts:/")
    client.set_logged_model_tags(variant.model_id, {names.WEIGHTS_RUN: run_id})
    assert integrity.missing(client, variant) == []


@pytest.fixture
def scored(store, tmp_path):
    """`register()` with scorecards of two variants, the second one better."""
    path = write_prompt_set(tmp_path / "rows.jsonl", tmp_path.name)
    words = [
        "promotion.smoke=false",
        "prompt_set.name=made",
        f"prompt_set.path={path}",
        f"registered_model={tmp_path.name}",
    ]
    rows = prompt_set.load(command_line.compose("register", words).prompt_set)
    chosen = [store.ids[*PYFUNC], store.ids[*ONNX]]
    for variant in find_variants(mlflow.MlflowClient(), "0"):
        if variant.model_id in chosen:
            write_scorecard(variant, rows, 3 + 4 * chosen.index(variant.model_id))

    def run(*overrides, only=None):
        return register.register(command_line.compose("register", [*words, *overrides]), rows, only)

    return run, tmp_path.name, chosen


def test_a_promoted_version_needs_nothing_else_and_a_killed_register_goes_on(store, scored, tmp_path, monkeypatch):
    run, name, (first, second) = scored
    run(only=[first])
    champion = f"models:/{name}@champion"
    shared = [store.shared(*overrides) for overrides in (PYFUNC, ONNX)]
    upload = HttpArtifactRepository.log_artifact

    def die_half_way(repository, file, folder=None):
        if Path(file).name not in [each.name for each in shared]:
            upload(repository, file, folder)
            return
        half = tmp_path / Path(file).name
        shutil.copy(file, half)
        cut(half)
        upload(repository, half, folder)
        sys.exit(KILLED)

    with monkeypatch.context() as patch:
        patch.setattr(HttpArtifactRepository, "log_artifact", die_half_way)
        with pytest.raises(SystemExit) as death:
            run()
    assert death.value.code == KILLED
    client = mlflow.MlflowClient()
    assert registry.read(client, name).champion.model_id == first
    assert answer(f"models:/{second}")
    run()
    for file in shared:
        file.rename(tmp_path / file.name)
    shutil.rmtree(tmp_path / "cache")
    assert registry.read(client, name).champion.model_id == second
    assert answer(champion)
    run("action=rollback")
    assert registry.read(client, name).champion.model_id == first
    assert answer(champion)
    copied = mlflow.MlflowClient().copy_model_version(f"models:/{name}/1", f"{name}-copy")
    assert answer(f"models:/{name}-copy/{copied.version}")
    for file in shared:
        (tmp_path / file.name).rename(file)


def test_gc_frees_what_no_variant_uses_any_more(store, tmp_path):
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("gc")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    entries = {file.name: describe_file(file)}

    def share(_):
        run = client.create_run(experiment, tags={names.FINGERPRINT: "f"})
        model = client.create_logged_model(experiment, source_run_id=run.info.run_id)
        shared_weights.share(client, model.model_id, "weights", {file.name: file}, entries)
        return model.model_id

    before = store.files()
    with ThreadPoolExecutor() as pool:
        # Builds at the same time may upload twice.
        models = list(pool.map(share, range(2)))
    stored = [path for path in store.files() if path not in before and path.endswith(file.name)]
    assert len(stored) in (1, 2)
    for model_id in models:
        assert sum(path in store.files() for path in stored) == len(stored)
        client.delete_logged_model(model_id)
        shared_weights.delete_unused(client, experiment)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store.database]
    subprocess.run(command, check=True, capture_output=True)
    assert not [path for path in stored if path in store.files()]
