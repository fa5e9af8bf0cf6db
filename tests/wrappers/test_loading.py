"""Models in one process: each runs its own code, keeps no one from theirs, and lets the process end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from steps import command_line
from steps.build import build
from steps.evaluation import asking
from steps.modes import wrapper
from steps.wrappers.engines import MissingPackage, load_engine
from tests.conftest import SPAIN
from tests.modes.exact_llama import NEEDS_LLAMA_CPP

OURS = ["pyfunc", "onnx", "openvino", pytest.param("llama_cpp", marks=NEEDS_LLAMA_CPP)]
MESSAGES = [{"role": "user", "content": SPAIN}]
ORDERS = ("AB", "BA", "AAB", "BAB")


@pytest.fixture
def marked(tmp_path, monkeypatch, checkpoint):
    """Return two models whose wrappers differ in one line: the beginning of the id of a reply."""

    def marked(mark):
        wrappers = shutil.copytree(wrapper.WRAPPERS, tmp_path / f"wrappers{mark}")
        file = wrappers / "contract" / "chat.py"
        file.write_text(file.read_text().replace("chatcmpl-", f"{mark}-"))
        with monkeypatch.context() as patch:
            patch.setattr(wrapper, "WRAPPERS", wrappers)
            return f"models:/{build(command_line.compose('build', ['mode=onnx']), checkpoint)}"

    return {mark: marked(mark) for mark in "AB"}


def _run(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LOAD = """
import json, sys
import mlflow
uris, order, messages, user = *map(json.loads, sys.argv[1:4]), sys.argv[4]
if user == "before":
    import wrappers
path = list(sys.path)
models = [mlflow.pyfunc.load_model(uris[mark]) for mark in order]
assert sys.path == path
import wrappers
assert wrappers.OWNER == "user"
assert not [name for name in sys.modules if name.startswith("wrappers.")]
print("".join(model.predict({"messages": messages})["id"][0] for model in models))
"""


@pytest.mark.slow
@pytest.mark.parametrize("user", ["before", "after"])
def test_each_model_runs_its_own_code_next_to_a_package_of_the_user(marked, tmp_path, user):
    package = tmp_path / "site" / "wrappers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('OWNER = "user"\n')
    for order in ORDERS:
        arguments = json.dumps(marked), json.dumps(order), json.dumps(MESSAGES), user
        assert _run(LOAD, *arguments, PYTHONPATH=str(package.parent)).strip() == order


@pytest.mark.slow
def test_models_of_earlier_versions_are_evaluated_with_their_own_code(marked, tmp_path):
    """Their code is a package `wrappers`, which their file imports by this name."""
    for mark, uri in marked.items():
        folder = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / f"model{mark}"))
        shutil.move(f"{folder}/code/phi3_wrappers", f"{folder}/code/wrappers")
        file = "from mlflow.models import set_model\nfrom wrappers.model import Phi3Model\nset_model(Phi3Model())\n"
        Path(folder, "onnx_model.py").write_text(file)
        marked[mark] = folder
    path = list(sys.path)
    for mark in "ABA":
        with asking.loaded(marked[mark]) as model:
            assert model.predict({"messages": MESSAGES})["id"].startswith(f"{mark}-")
    assert "wrappers" not in sys.modules
    assert sys.path == path


LEAVE = """
import sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
request = {sys.argv[2]: eval(sys.argv[3]), "temperature": 2.0, "max_tokens": 400}
if sys.argv[4] == "next":
    stream = model.predict_stream(request)
    next(stream), next(stream, None)
else:
    for number, piece in enumerate(model.predict_stream(request)):
        if number == 2:
            break
print("left")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["next", "break"])
@pytest.mark.parametrize("interface", ["chat", "prompt"])
@pytest.mark.parametrize("mode", OURS)
def test_script_that_leaves_a_stream_ends_normally(uris, mode, interface, way):
    uri, store = uris(mode, interface)
    subject = ("messages", repr(MESSAGES)) if interface == "chat" else ("prompt", repr(SPAIN))
    for _ in range(3):
        assert _run(LEAVE, uri, *subject, way, MLFLOW_TRACKING_URI=store) == "left\n"


FORK = """
import os, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
request = {"messages": eval(sys.argv[2])}
stream = model.predict_stream(request | {"temperature": 2.0, "max_tokens": 400})
if sys.argv[3] == "busy":
    next(stream), next(stream)
child = os.fork()
if not child:
    print(model.predict(request)["choices"][0]["message"]["content"], flush=True)
    if sys.argv[3] == "freed":
        del model, stream
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(model.predict(request)["choices"][0]["message"]["content"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["idle", "busy", "freed"])
@pytest.mark.parametrize("mode", OURS)
def test_a_forked_process_answers_and_ends(uris, mode, moment):
    uri, store = uris(mode, "chat")
    answer = "The capital of Spain is Madrid.\n"
    assert _run(FORK, uri, repr(MESSAGES), moment, MLFLOW_TRACKING_URI=store) == f"{answer}7\n{answer}"


def test_an_engine_whose_package_is_missing_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for module in ("llama_cpp_engine", "llama_context"):
        monkeypatch.delitem(sys.modules, f"steps.wrappers.engines.{module}", raising=False)
    sentence = r"^the model needs llama\.cpp, and this environment has no module 'llama_cpp': install the model's own"
    with pytest.raises(MissingPackage, match=sentence):
        load_engine(str(tmp_path), "llama.cpp", max_batch_size=4, prefix_cache_mb=0)
