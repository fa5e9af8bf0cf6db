"""Checkpoints from the hub, through its real client and a small server in place of huggingface.co."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from steps.checkpoints.checkpoint import resolve
from steps.checkpoints.faults import checkpoint_faults
from steps.checkpoints.hub import WITHOUT_A_HUB
from steps.config.schema import HubModel
from steps.errors import StepError
from steps.output import suppress_output
from steps.wrappers.manifest import describe_file
from tests.checkpoints.hub_server import Repository, serve
from tests.conftest import PROJECT
from tests.support import wait_until

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


@pytest.fixture
def miniature(checkpoint, tmp_path):
    """The miniature as a repository: in two shards with their index, and with a code file."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "repository"
    with suppress_output():
        AutoModelForCausalLM.from_pretrained(checkpoint.directory).save_pretrained(folder, max_shard_size="1500KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(checkpoint.directory / name, folder)
    assert (folder / "model.safetensors.index.json").is_file()
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code of a checkpoint ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return Repository(folder, COMMIT)


@pytest.mark.slow
def test_the_pinned_revision_is_downloaded_without_its_code(miniature, step, tmp_path):
    with serve({REPOSITORY: miniature}) as address:
        environment = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = step("build", "model=phi3_mini_4k", HF_ENDPOINT=address, **environment)
    assert done.returncode == 0, done.stderr
    assert "Built phi3_mini_4k-pyfunc-fp32-chat" in done.stdout
    assert f"files of {REPOSITORY} (" in done.stdout
    assert miniature.paths()
    assert all(f"/resolve/{COMMIT}/" in path and not path.endswith(".py") for path in miniature.paths())
    (run,) = mlflow.search_runs(output_format="list")
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/checkpoint.json")["revision"] == COMMIT


def _exported(folder):
    """A repository with several exports, each in its folder."""
    export = folder / "cpu_and_mobile" / "cpu-int4-rtn-block-32-acc-level-4"
    for place in (export, folder / "cuda" / "cuda-fp16"):
        place.mkdir(parents=True)
        (place / "genai_config.json").write_text("{}")
        (place / "model.onnx").write_bytes(b"graph" * 300)
    return Repository(folder, COMMIT)


# More than twice the 10 MB that the client writes at a time.
LARGE_BYTES = 30_000_000
FETCH = """
import json, sys
from steps import command_line
from steps.checkpoints.hub import fetch
from steps.errors import StepError
try:
    directory, commit = fetch(command_line.compose("build", sys.argv[1:]).model)
except StepError as error:
    raise SystemExit("error: " + " ".join(error.faults)) from None
print(json.dumps([str(directory), commit]))
"""


@pytest.fixture
def fetch(tmp_path):
    """Fetch a model in a process of its own: Hugging Face's client reads its settings when it is imported."""

    def run(address, *overrides, wait=True):
        environment = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        process = subprocess.Popen(
            [sys.executable, "-c", FETCH, *overrides],
            cwd=PROJECT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(overrides, process.returncode, output, errors)

    return run


@pytest.fixture
def large(tmp_path):
    """A repository with a file so large that its download can be cut in the middle."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(LARGE_BYTES))
    return Repository(folder, COMMIT)


def _folder_of(done):
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout.splitlines()[-1])[0])


def test_a_branch_is_resolved_to_its_commit_and_works_without_the_hub_afterwards(tmp_path, fetch, large):
    with serve({"microsoft/Phi-4-mini-instruct": large}) as address:
        done = fetch(address, "model=phi4_mini")
        assert f"microsoft/Phi-4-mini-instruct at its main branch is commit {COMMIT}.\n" in done.stdout
        assert f"Downloading 2 files of microsoft/Phi-4-mini-instruct ({LARGE_BYTES + 2:,} bytes; " in done.stdout
        assert json.loads(done.stdout.splitlines()[-1])[1] == COMMIT
        assert all(COMMIT in path for path in large.paths())
    again = fetch(address, "model=phi4_mini")
    assert (_folder_of(again) / "model.safetensors").stat().st_size == LARGE_BYTES
    assert "Downloading" not in again.stdout


def test_only_the_subfolder_of_a_ready_made_export_is_downloaded(tmp_path, fetch):
    repository = _exported(tmp_path / "exports")
    with serve({"microsoft/Phi-3-mini-4k-instruct-onnx": repository}) as address:
        folder = _folder_of(fetch(address, "model=phi3_mini_4k_onnx", "mode=onnx", "precision=int4"))
    assert sorted(file.name for file in folder.iterdir()) == ["genai_config.json", "model.onnx"]
    assert folder.name == "cpu-int4-rtn-block-32-acc-level-4"
    assert all("/cpu_and_mobile/" in path for path in repository.paths())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "model=phi3_mini_4k_onnx is exported to ONNX already, which is for mode=onnx, got mode=pyfunc."),
        (["mode=onnx"], "model=phi3_mini_4k_onnx is exported in int4, got precision=fp32: give precision=int4."),
    ],
)
def test_a_ready_made_export_is_refused_elsewhere_before_it_is_downloaded(typed, overrides, sentence):
    done = typed("build", "model=phi3_mini_4k_onnx", *overrides)
    assert done.returncode == 1
    assert f"error: {sentence}\n" in done.stderr
    assert "hub" not in done.stderr


def test_a_lost_connection_goes_on_where_it_was_cut(fetch, large):
    large.cuts = 2
    with serve({REPOSITORY: large}) as address:
        folder = _folder_of(fetch(address, "model=phi3_mini_4k"))
    assert (folder / "model.safetensors").read_bytes() == (large.folder / "model.safetensors").read_bytes()
    ranges = [part for kind, path, part in large.requested if kind == "GET" and path.endswith("model.safetensors")]
    assert len(ranges) == 3
    assert ranges[0] is None
    assert None not in ranges[1:]


def test_a_killed_download_goes_on_where_it_was_killed(tmp_path, fetch, large):
    large.stalls = True
    with serve({REPOSITORY: large}) as address:
        process = fetch(address, "model=phi3_mini_4k", wait=False)
        parts = wait_until(lambda: [f for f in tmp_path.rglob("*.part") if f.stat().st_size])
        process.kill()
        process.communicate()
        begun, large.stalls = parts[0].stat().st_size, False
        done = fetch(address, "model=phi3_mini_4k")
    assert (_folder_of(done) / "model.safetensors").stat().st_size == LARGE_BYTES
    assert f"Going on with model.safetensors at {begun:,} of {LARGE_BYTES:,} bytes …" in done.stdout
    assert f"({LARGE_BYTES + 2 - begun:,} bytes; " in done.stdout
    ranges = [part for kind, path, part in large.requested if kind == "GET" and path.endswith("model.safetensors")]
    assert ranges == [None, f"bytes={begun}-"]
    assert list(tmp_path.rglob("*.part*")) == []


REFUSALS = {
    "gated": (
        {"error": (403, {"X-Error-Code": "GatedRepo"})},
        f"{REPOSITORY} is gated: accept its terms on its page of the hub, and set HF_TOKEN to a token of that account.",
    ),
    "missing": (
        None,
        f"{REPOSITORY} is not on the hub, or is private: check model.repository, and set HF_TOKEN if it is private.",
    ),
    "another revision": (
        {"commit": "1" * 40},
        f"{REPOSITORY} has no revision v9: check model.revision, or leave it out for the main branch.",
    ),
    "a bad token": (
        {"error": (401, {"X-Error-Message": "Invalid credentials in Authorization header"})},
        f"{REPOSITORY} at revision v9 could not be fetched from the hub: it refuses the request (HTTP 401). Set "
        "HF_TOKEN to a valid token that may read the repository.",
    ),
    "too many requests": (
        {"error": (429, {"Retry-After": "77"})},
        f"{REPOSITORY} at revision v9 could not be fetched from the hub: it allows no more requests for now (HTTP "
        "429). Run the command again in 77 seconds, or set HF_TOKEN.",
    ),
    "down": (
        {"error": (500, {})},
        f"{REPOSITORY} at revision v9 could not be fetched from the hub: it answers with HTTP 500. Run the command "
        f"again later. {WITHOUT_A_HUB}",
    ),
}


@pytest.mark.parametrize(("fault", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_of_the_hub_is_one_sentence(fetch, large, fault, sentence):
    for name, value in (fault or {}).items():
        setattr(large, name, value)
    with serve({} if fault is None else {REPOSITORY: large}) as address:
        done = fetch(address, "model=phi3_mini_4k", "model.revision=v9")
    assert done.returncode == 1
    assert done.stderr == f"error: {sentence}\n"
    assert large.paths() == []


def test_too_little_room_is_reported_with_the_bytes_before_the_download(fetch, large):
    large.claimed = 10**16
    with serve({REPOSITORY: large}) as address:
        done = fetch(address, "model=phi3_mini_4k")
    assert done.returncode == 1
    assert f"{10**16 + 2:,} bytes are to be downloaded, " in done.stderr
    assert done.stderr.endswith("Free some space, or set HF_HOME to a folder on a larger disk.\n")
    assert large.paths() == []


def test_a_file_that_arrives_damaged_is_removed(tmp_path, fetch, large):
    large.damaged = True
    with serve({REPOSITORY: large}) as address:
        done = fetch(address, "model=phi3_mini_4k")
        assert done.returncode == 1
        assert f"model.safetensors of {REPOSITORY} arrived damaged: the hub lists sha256 " in done.stderr
        large.damaged = False
        assert (_folder_of(fetch(address, "model=phi3_mini_4k")) / "model.safetensors").is_file()
