"""Checkpoints from the hub, through its real client and a small server in place of huggingface.co."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import mlflow
import pytest

from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.faults import checkpoint_faults
from steps.config.schema import HubModel
from steps.digests import digest_file
from steps.errors import StepError
from steps.wrappers.manifest import describe_file

COMMIT = "0a67737cc96d2554230f90338b163bc6380a2a85"
REPOSITORY = "microsoft/Phi-3-mini-4k-instruct"


def test_a_malformed_repository_name_is_refused_in_one_line(typed):
    done = typed("build", "model=phi3_mini_4k", "model.repository=a/b/c")
    assert done.stderr == (
        "error: model.repository must be the hub's OWNER/NAME, for example microsoft/Phi-3-mini-4k-instruct, "
        "got 'a/b/c'.\n"
    )


def test_an_unreachable_hub_is_reported_in_one_line():
    with pytest.raises(StepError) as refusal:
        resolve(HubModel(name="phi3_mini_4k", repository=REPOSITORY, revision=COMMIT))
    (sentence,) = refusal.value.faults
    assert sentence.startswith(f"{REPOSITORY} at revision {COMMIT} could not be fetched from the hub:")
    assert sentence.endswith("use model=miniature or a folder: -P model=local -P model.path=FOLDER.")
    assert "\n" not in sentence


def test_a_damaged_file_in_the_hubs_cache_is_reported_with_what_to_delete(tmp_path):
    """The hub's client stores a large file under its sha256 and links to it."""
    blob = tmp_path / f"{7:064x}"
    blob.write_text("{}")
    link = tmp_path / "config.json"
    link.symlink_to(blob)
    entry = describe_file(link)
    assert checkpoint_faults(tmp_path, {"config.json": entry}) == [
        f"{link} is damaged: the hub lists sha256 {blob.name}, the file has {entry['sha256']}; "
        f"delete {blob} to download it again."
    ]


class _Hub(BaseHTTPRequestHandler):
    """The few routes that the hub's client needs, serving the files of one folder."""

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body):
        path = unquote(self.path.partition("?")[0])
        self.requested.append(path)
        files = sorted(self.folder.iterdir())
        if "/tree/" in path:
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": digest_file(f)} for f in files]
            return self._send(json.dumps(entries).encode(), body, "application/json")
        if path.startswith("/api/models/"):
            facts = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            return self._send(json.dumps(facts).encode(), body, "application/json")
        file = self.folder / path.rpartition("/")[2]
        if not file.is_file():
            return self.send_error(404)
        return self._send(file.read_bytes(), body, "application/octet-stream", digest_file(file))

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
    """The miniature under the name of the real Phi-3, with a code file, on a local hub."""
    folder = shutil.copytree(checkpoint.directory, tmp_path / "repository")
    (folder / "phi3_manifest.json").unlink()
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code of a checkpoint ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    handler = type("Hub", (_Hub,), {"folder": folder, "requested": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield handler, address
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_pinned_revision_is_downloaded_without_its_code(hub, step, tmp_path):
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
    assert any(COMMIT in path for path in handler.requested)
    assert not any(path.endswith(".py") for path in handler.requested)
    (run,) = mlflow.search_runs(output_format="list")
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/checkpoint.json")["revision"] == COMMIT
