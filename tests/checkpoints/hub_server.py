"""A small server in place of huggingface.co that speaks the routes which the hub's client uses, with every fault."""

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

# From this size on, the server has a sha256 for a file, as the hub has for its large files.
LARGE = 1000


@dataclass
class Repository:
    """The files of a folder under a name, at one commit, and what is wrong with them.

    Attributes:
        folder: Where the files are.
        commit: The commit of the branch main.
        error: The hub's answer to every request: status and headers.
        cuts: How often the connection is cut in the middle of a large file.
        stalls: Whether a large file stops in its middle, and the connection stays.
        damaged: Whether large files arrive with other bytes than listed.
        claimed: What the hub says that the large files' size is.
    """

    folder: Path
    commit: str
    error: tuple[int, dict[str, str]] | None = None
    cuts: int = 0
    stalls: bool = False
    damaged: bool = False
    claimed: int | None = None
    requested: list[tuple[str, str, str | None]] = field(default_factory=list)

    def paths(self, method="GET"):
        """Return the files that were requested by a method."""
        return [path for kind, path, _ in self.requested if kind == method and "/resolve/" in path]

    def files(self):
        return {str(f.relative_to(self.folder)): f for f in sorted(self.folder.rglob("*")) if f.is_file()}


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Repository]

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def _answer(self):
        path = unquote(self.path.partition("?")[0])
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if (repository := self.repositories.get(name)) is None:
            return self._refuse(401, {"X-Error-Code": "RepoNotFound"})
        repository.requested.append((self.command, path, self.headers.get("Range")))
        if repository.error:
            return self._refuse(*repository.error)
        revision = path.split("/revision/" if "/revision/" in path else "/resolve/")[-1].split("/")[0]
        if "/tree/" in path:
            return self._send(json.dumps([_entry(n, f, repository) for n, f in repository.files().items()]).encode())
        if revision not in ("main", repository.commit):
            return self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/"):
            facts = {"id": name, "sha": repository.commit, "siblings": [{"rfilename": n} for n in repository.files()]}
            return self._send(json.dumps(facts).encode())
        return self._send_file(repository, path.split(f"/resolve/{revision}/")[-1])

    def _send_file(self, repository, name):
        file = repository.files().get(name)
        if file is None:
            return self._refuse(404, {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        is_large = len(content) >= LARGE
        if is_large:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(repository.claimed or len(content))}
            content = content[::-1] if repository.damaged else content
        return self._send(content, headers, repository if is_large else None)

    def _send(self, content, headers=None, repository=None):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_faulty = repository is not None and (repository.cuts > 0 or repository.stalls)
        self.wfile.write(content[: len(content) // 2] if is_faulty else content)
        if is_faulty:
            repository.cuts -= 1
            self.wfile.flush()
            if repository.stalls:
                self.stopped.wait(60)
            self.close_connection = True

    def _refuse(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def _etag(content):
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name, file, repository):
    content = file.read_bytes()
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) >= LARGE:
        size = repository.claimed or len(content)
        entry |= {"size": size, "lfs": {"oid": _etag(content), "size": size, "pointerSize": 134}}
    return entry


@contextmanager
def serve(repositories):
    """Yield the address of a hub with some repositories."""
    stopped = threading.Event()
    handler = type("Hub", (_Handler,), {"repositories": repositories, "stopped": stopped})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
