"""Where checkpoints come from: folders, the hub through its real client, and the cache."""

import json
import multiprocessing
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from steps import digests
from steps.checkpoints import sources
from steps.config.schema import Model
from steps.errors import StepError
from steps.wrappers.manifest import MANIFEST

COMMIT = "0a67737cc96d2554230f90338b163bc6380a2a85"
REPOSITORY = "microsoft/Phi-3-mini-4k-instruct"


def _folder(path):
    return Model(name="local", source="folder", path=str(path))


def test_a_folder_is_taken_as_it_is(checkpoint):
    taken = sources.resolve(_folder(checkpoint.directory))
    assert taken.layout == "huggingface"
    assert taken.sha256 == checkpoint.sha256
    assert taken.manifest["model.safetensors"] == digests.sha256_of(checkpoint.directory / "model.safetensors")


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


def _cut(file):
    os.truncate(file, file.stat().st_size - 100)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def _write(text):
    return lambda file: file.write_text(text)


@pytest.mark.parametrize(
    ("name", "damage", "kept_manifest", "sentence"),
    [
        ("model.safetensors", _flip, True, "model.safetensors was changed: its sha256 is another one"),
        ("model.safetensors", _cut, True, "model.safetensors is cut short: "),
        ("tokenizer.json", _flip, True, "tokenizer.json was changed"),
        ("generation_config.json", os.unlink, True, "generation_config.json is missing"),
        ("model.safetensors", _cut, False, "model.safetensors is damaged: "),
        ("config.json", _write('{"a": '), False, "config.json is damaged: it is no JSON (Expecting value"),
        ("config.json", _write("[]"), False, "config.json is damaged: it is no JSON object."),
        (
            "model.safetensors.index.json",
            _write('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
            False,
            "it names files that are not there (model-00001-of-00002.safetensors)",
        ),
    ],
)
def test_a_damaged_folder_is_refused_by_the_file(checkpoint, tmp_path, name, damage, kept_manifest, sentence):
    folder = shutil.copytree(checkpoint.directory, tmp_path / "folder")
    (folder / "README.md").write_text("of no account")
    if not kept_manifest:
        (folder / MANIFEST).unlink()
    damage(folder / name)
    with pytest.raises(StepError) as refusal:
        sources.resolve(_folder(folder))
    assert sentence in str(refusal.value)


def test_a_repository_that_cannot_be_is_refused_in_a_line(typed):
    done = typed("build", "model=phi3_mini_4k", "model.repository=a/b/c")
    assert done.stderr == (
        "error: model.repository must be OWNER/NAME of the hub, as microsoft/Phi-3-mini-4k-instruct, got 'a/b/c'.\n"
    )


def test_a_cache_that_cannot_be_used_is_said_in_a_line(typed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PHI3_CACHE_DIR", str(tmp_path / "file"))
    done = typed("build")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: The cache {tmp_path / 'file'} cannot be used (")
    assert line.endswith("): set PHI3_CACHE_DIR to a folder that can be written.")


def test_without_a_hub_one_line_says_so():
    with pytest.raises(StepError) as refusal:
        sources.resolve(Model(name="phi3_mini_4k", source="hub", repository=REPOSITORY, revision=COMMIT))
    (sentence,) = refusal.value.faults
    assert sentence.startswith(f"{REPOSITORY} at revision {COMMIT} could not be fetched from the hub:")
    assert sentence.endswith("take model=miniature, or a folder: -P model=local -P model.path=FOLDER.")
    assert "\n" not in sentence


def _oid(file):
    return digests.sha256_of(file)


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
    (folder / "phi3_manifest.json").unlink()
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


@pytest.mark.parametrize("damage", [_flip, _cut, os.unlink], ids=["flipped", "cut short", "lost"])
def test_a_damaged_folder_of_the_cache_is_made_again(cache, monkeypatch, capsys, damage):
    monkeypatch.setenv("PHI3_CACHE_DIR", str(cache))
    made = sources.made_once("thing", lambda directory: (directory / "file").write_text("x" * 200))
    damage(made / "file")
    again = sources.made_once("thing", lambda directory: (directory / "file").write_text("y" * 200))
    assert (again / "file").read_text() == "y" * 200
    assert f"{made} in the cache is damaged and is made again: file " in capsys.readouterr().out
    assert sources.made_once("thing", lambda directory: pytest.fail("made again")) == made


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
