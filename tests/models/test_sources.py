"""Where checkpoints come from: folders, the hub through its real client, and the cache."""

import json
import multiprocessing
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from steps.errors import StepError
from steps.models import manifest, sources
from steps.schema import Model

COMMIT = "0a67737cc96d2554230f90338b163bc6380a2a85"
REPOSITORY = "microsoft/Phi-3-mini-4k-instruct"


def _folder(path):
    return Model(name="local", source="folder", path=str(path))


def test_a_folder_is_taken_as_it_is(checkpoint):
    taken = sources.resolve(_folder(checkpoint.directory))
    assert taken.layout == "huggingface"
    assert taken.sha256 == checkpoint.sha256
    assert taken.manifest["model.safetensors"] == manifest.sha256_of(checkpoint.directory / "model.safetensors")


def test_code_and_pickles_are_left_out_of_the_manifest(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "with_code")
    (folder / "modeling_phi3.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert sources.resolve(_folder(folder)).sha256 == checkpoint.sha256


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "model.path must be a folder, got"),
        ([], "is no checkpoint: it must hold config.json and tokenizer.json (huggingface layout) or"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "holds no *.safetensors weights; pickled weights"),
        (["genai_config.json", "tokenizer.json"], "holds no *.onnx weights"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, files, sentence):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(StepError) as refusal:
        sources.resolve(_folder(folder))
    assert sentence in str(refusal.value)


def test_without_a_hub_one_line_says_so():
    with pytest.raises(StepError) as refusal:
        sources.resolve(Model(name="phi3_mini_4k", source="hub", repository=REPOSITORY, revision=COMMIT))
    (sentence,) = refusal.value.faults
    assert sentence.startswith(f"{REPOSITORY} at revision {COMMIT} could not be fetched from the hub:")
    assert sentence.endswith("take model=miniature, or a folder: -P model=local -P model.path=FOLDER.")
    assert "\n" not in sentence


def _oid(file):
    return manifest.sha256_of(file)


class _Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that its client needs, over one folder."""

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body):
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        files = sorted(self.folder.iterdir())
        if "/tree/" in path:
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _oid(f)} for f in files]
            return self._send(json.dumps(entries).encode(), body, "application/json")
        if path.startswith("/api/models/"):
            facts = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            return self._send(json.dumps(facts).encode(), body, "application/json")
        file = self.folder / path.rpartition("/")[2]
        if not file.is_file():
            return self.send_error(404)
        return self._send(file.read_bytes(), body, "application/octet-stream", _oid(file))

    def _send(self, content, body, kind, etag=None):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(checkpoint, tmp_path):
    """The miniature under the name of the real Phi-3, with code beside it, on a hub of our own."""
    folder = shutil.copytree(checkpoint.directory, tmp_path / "repository")
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code of a checkpoint ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    handler = type("Hub", (_Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield handler, address
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_gives_the_pinned_revision_without_its_code(hub, step, tmp_path):
    handler, address = hub
    done = step(
        "build",
        "model=phi3_mini_4k",
        HF_ENDPOINT=address,
        HF_HUB_OFFLINE="0",
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr
    assert "Built phi3_mini_4k-pyfunc-fp32-chat" in done.stdout
    assert any(COMMIT in path for path in handler.asked)
    assert not any(path.endswith(".py") for path in handler.asked)
    import mlflow

    (run,) = mlflow.search_runs(output_format="list")
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/checkpoint.json")["revision"] == COMMIT


def _make(directory):
    (directory / "file").write_text(str(os.getpid()))


def _make_in_process(cache):
    os.environ["PHI3_CACHE_DIR"] = str(cache)
    sources.made_once("thing", _make)


def _make_and_die(cache):
    os.environ["PHI3_CACHE_DIR"] = str(cache)

    def half(directory):
        _make(directory)
        os.kill(os.getpid(), 9)

    sources.made_once("thing", half)


def _spawn(target, cache, count):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(cache,)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def _folders(cache):
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_two_processes_at_once_make_one(cache):
    assert _spawn(_make_in_process, cache, 2) == [0, 0]
    assert _folders(cache) == ["thing"]


def test_a_kill_while_making_leaves_nothing_half_made(cache, monkeypatch):
    assert _spawn(_make_and_die, cache, 1) == [-9]
    assert not (cache / "thing").exists()
    monkeypatch.setenv("PHI3_CACHE_DIR", str(cache))
    made = sources.made_once("thing", _make)
    assert (made / "file").read_text() == str(os.getpid())
    assert _folders(cache) == ["thing"]
