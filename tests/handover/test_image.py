"""docs/image.md: the build context is whole, and what the Dockerfile starts from it answers. Docker is not needed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from steps.modes import get_mode
from tests.conftest import PROJECT, SPAIN
from tests.handover.conftest import commands, execute
from tests.modes.test_seam import INSTALLED_MODES
from tests.support import free_port, wait_until

DOCKERFILE = (PROJECT / "docs" / "docker" / "Dockerfile").read_text()
# (instruction, its arguments), without comments and with continued lines joined.
INSTRUCTIONS = [
    tuple(line.split(" ", 1))
    for line in re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ").splitlines()
    if line
]
NAMES = [name for name, _ in INSTRUCTIONS]
ENVIRONMENT = dict(words.split("=", 1) for name, words in INSTRUCTIONS if name == "ENV")
MODEL, PORT = "/opt/ml/model", "8080"


@pytest.fixture(scope="module")
def context(champion):
    """Run the page's first command, which writes the build context; return its folder."""
    (generate,) = commands("image.md", "mlflow models generate-dockerfile")
    execute(generate, champion)
    return champion / "champion-image"


def arguments(name):
    """Return the arguments of an instruction that stands once."""
    (words,) = (words for instruction, words in INSTRUCTIONS if instruction == name)
    return words


def command_of(words, context, port):
    """Return a command in the exec form, with the places of the image replaced by those of a test."""
    command = json.loads(words.replace(MODEL, str(context / "model_dir")).replace(PORT, str(port)))
    assert command[0] == "python"
    return command


def serve(context, folder, python, port):
    """Start the server as the image does, with a Python that has the packages."""
    command = [str(python), *command_of(arguments("ENTRYPOINT"), context, port)[1:]]
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    search = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "server.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=kept | ENVIRONMENT | {"PATH": search}, stdout=log, stderr=log)


def health(context, port):
    """Return the exit code of the health check."""
    command = command_of(arguments("HEALTHCHECK").partition("CMD ")[2], context, port)
    return subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False).returncode


def ask(port, route, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{route}", body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def stream(port, route):
    """Ask for a long reply, piece by piece."""
    body = {"messages": [{"role": "user", "content": SPAIN}], "stream": True, "temperature": 2.0, "max_tokens": 400}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{route}", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=60)


def check_server(context, folder, python):
    """Serve from the context: wait for health, ask over both routes, and stop it."""
    port = free_port()
    process = serve(context, folder, python, port)
    try:
        assert health(context, port) != 0
        wait_until(lambda: process.poll() is not None or health(context, port) == 0, seconds=120, pause=0.5)
        assert process.poll() is None, (folder / "server.log").read_text()
        body = (PROJECT / "docs" / "azure" / "request.json").read_bytes()
        for route in ("/invocations", "/v1/chat/completions"):
            assert ask(port, route, body) == "The capital of Spain is Madrid."
        with stream(port, "/v1/chat/completions") as open_reply:
            assert open_reply.readline().startswith(b"data: {")
            process.send_signal(signal.SIGTERM)
            # What is open is finished.
            assert open_reply.read().rstrip().endswith(b"data: [DONE]")
        process.wait(timeout=30)
    finally:
        process.kill()
    assert "Finished server process" in (folder / "server.log").read_text()


def test_the_context_holds_what_the_dockerfile_copies(context):
    sources = [words.split()[-2] for name, words in INSTRUCTIONS if name == "COPY"]
    assert sources == ["model_dir/requirements.txt", "model_dir"]
    assert all((context / source).exists() for source in sources)


def test_the_context_is_the_whole_model_and_nothing_of_this_machine(context, champion, folder_of):
    def files(folder):
        return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}

    copied, exported = files(context / "model_dir"), files(folder_of("chat"))
    # MLflow writes where a version was fetched from.
    copied.pop("registered_model_meta", None), exported.pop("registered_model_meta", None)
    assert copied == exported
    assert [name for name, content in copied.items() if str(champion).encode() in content] == []


def test_the_server_has_no_rights_and_a_health_check():
    assert arguments("USER") == "1000"
    assert NAMES.index("USER") < NAMES.index("ENTRYPOINT")
    assert not set(NAMES[NAMES.index("USER") :]) & {"RUN", "COPY", "ADD"}
    assert "--start-period=" in arguments("HEALTHCHECK")
    assert int(arguments("EXPOSE")) == int(PORT)
    assert not re.search("TOKEN|PASSWORD|SECRET|KEY=", DOCKERFILE)


def test_the_image_takes_the_pins_only_and_torchs_cpu_build():
    installs = [words for name, words in INSTRUCTIONS if name == "RUN" and "install" in words]
    assert installs[0] == "pip install --no-cache-dir uv"
    (install,) = installs[1:]
    assert install.endswith(" -r requirements.txt")
    assert arguments("ARG") == "TORCH_BACKEND=cpu"
    assert "--torch-backend=${TORCH_BACKEND}" in install


def test_the_server_of_the_image_answers_and_finishes(context, tmp_path):
    check_server(context, tmp_path, sys.executable)


def test_mlflows_own_dockerfile_lacks_what_the_page_says(context):
    """If this fails, MLflow has improved: correct the table of docs/image.md."""
    own = (context / "Dockerfile").read_text()
    assert not re.search("^(USER|HEALTHCHECK)", own, re.M)
    assert "nginx" in own


needs_uv = pytest.mark.skipif(shutil.which("uv") is None, reason="pip install uv")


@pytest.mark.slow
@pytest.mark.service
@needs_uv
def test_the_dockerfiles_install_gives_an_environment_of_the_pins_alone_and_it_serves(context, tmp_path, monkeypatch):
    """Indirect packages too: what is installed is what was tested."""
    shutil.copy(context / "model_dir" / "requirements.txt", tmp_path)
    execute(f"uv venv -q --python '{sys.executable}' clean", tmp_path)
    (install,) = [words for name, words in INSTRUCTIONS if name == "RUN" and "-r requirements.txt" in words]
    monkeypatch.setenv(*arguments("ARG").split("="))
    execute(install.replace("--system --no-cache", "--python clean/bin/python"), tmp_path)
    installed = execute("uv pip list -q --python clean/bin/python --format freeze", tmp_path).split()
    assert set(installed) == set((tmp_path / "requirements.txt").read_text().split())
    check_server(context, tmp_path, tmp_path / "clean" / "bin" / "python")


@pytest.mark.slow
@pytest.mark.service
@needs_uv
@pytest.mark.parametrize("mode", INSTALLED_MODES)
def test_nothing_has_to_be_added_to_the_pins_of_a_mode(mode, tmp_path):
    pins = get_mode(mode).whole_requirements
    (tmp_path / "requirements.txt").write_text("\n".join(pins))
    compile_them = f"uv pip compile -q --no-header --no-annotate --python '{sys.executable}' requirements.txt"
    # Some builds of torch have a label, and bring packages of CUDA with them.
    complete = {line.partition("+")[0] for line in execute(compile_them, tmp_path).split()}
    added = [line for line in complete - set(pins) if not line.startswith(("cuda-", "nvidia-", "triton="))]
    assert added == []
