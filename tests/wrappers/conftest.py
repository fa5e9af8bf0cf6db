"""Engines and contracts over the miniature, loaded once for the session."""

import pytest

from steps import command_line
from steps.build import build
from steps.evaluation import asking
from steps.modes import get_mode
from steps.wrappers.contract.interfaces import INTERFACES
from steps.wrappers.contract.requests import Contract
from steps.wrappers.engines.scheduler import Scheduler
from steps.wrappers.tokenizer import ChatTokenizer
from tests.gpu import GPU
from tests.modes.exact_llama import NEEDS_LLAMA_CPP, exact_llama

DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 64}


@pytest.fixture(scope="session")
def tokenizer(checkpoint):
    return ChatTokenizer(checkpoint.directory)


def _exported(checkpoint, overrides):
    return get_mode("onnx").stage(checkpoint, command_line.compose("build", overrides))


@pytest.fixture(scope="session")
def contract(tokenizer):
    return Contract(INTERFACES["chat"], tokenizer, tokenizer.context_length, DEFAULTS)


@pytest.fixture(scope="session")
def torch_scheduler(checkpoint):
    from steps.wrappers.engines.torch_engine import TorchEngine

    return Scheduler(TorchEngine(str(checkpoint.directory), "fp32", 16, "cpu"))


@pytest.fixture(scope="session")
def gpu_scheduler(checkpoint):
    from steps.wrappers.engines.torch_engine import TorchEngine

    return Scheduler(TorchEngine(str(checkpoint.directory), "fp32", 16, "cuda"))


@pytest.fixture(scope="session")
def packed_scheduler(checkpoint):
    """The torch engine with packed layers, as for a large model: the miniature's are too small by default."""
    from steps.wrappers.engines import packed_linear
    from steps.wrappers.engines.torch_engine import TorchEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_linear, "MIN_WEIGHTS", 1)
        return Scheduler(TorchEngine(str(checkpoint.directory), "fp32", 16, "cpu"))


@pytest.fixture(scope="session")
def onnx_scheduler(checkpoint):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    with _exported(checkpoint, ["mode=onnx"]) as folder:
        yield Scheduler(OnnxEngine(str(folder), 16))


@pytest.fixture(scope="session")
def int4_scheduler(checkpoint):
    from steps.wrappers.engines.onnx_engine import OnnxEngine

    with _exported(checkpoint, ["mode=onnx", "precision=int4"]) as folder:
        yield Scheduler(OnnxEngine(str(folder), 16))


@pytest.fixture(scope="session")
def genai_scheduler(checkpoint):
    from steps.wrappers.engines.genai_engine import GenaiEngine

    with _exported(checkpoint, ["mode=onnx"]) as folder:
        yield Scheduler(GenaiEngine(str(folder), 16, "cpu"))


@pytest.fixture(scope="session")
def int4_genai_scheduler(checkpoint):
    from steps.wrappers.engines.genai_engine import GenaiEngine

    with _exported(checkpoint, ["mode=onnx", "precision=int4"]) as folder:
        yield Scheduler(GenaiEngine(str(folder), 16, "cpu"))


@pytest.fixture(scope="session")
def openvino_scheduler(checkpoint):
    from steps.wrappers.engines.openvino_engine import load

    with get_mode("openvino").stage(checkpoint, command_line.compose("build", ["mode=openvino"])) as folder:
        yield Scheduler(load(str(folder), 16))


@pytest.fixture(scope="session")
def llama_scheduler(checkpoint, tmp_path_factory):
    """The weights as they are: in few bits, the miniature's answers are others."""
    from steps.checkpoints.configuration import load_config
    from steps.modes.gguf_export import FILE, write_gguf
    from steps.wrappers.engines.llama_cpp_engine import load

    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(checkpoint.directory, load_config(checkpoint.directory), folder / FILE)
    with exact_llama():
        yield Scheduler(load(str(folder), 16))


# By hand, because installing it takes minutes: CONTRIBUTING.md.
@pytest.fixture(params=["torch", "onnx", "genai", "openvino", *GPU, pytest.param("llama", marks=NEEDS_LLAMA_CPP)])
def scheduler(request):
    return request.getfixturevalue(f"{request.param}_scheduler")


@pytest.fixture
def complete(scheduler, contract, tokenizer):
    """Complete rows and return the finished choices of each: `complete({"messages": …}, …)`."""

    def run(*rows):
        requests = contract.requests(rows, None)
        sequences = [request.sequences(tokenizer) for request in requests]
        scheduler.run([sequence for choices in sequences for sequence in choices])
        return sequences

    return run


@pytest.fixture(scope="session")
def uris(tmp_path_factory, checkpoint, empty_store):
    """Return the model URI and the store of a mode and an interface; each model is built once."""
    folder, built = tmp_path_factory.mktemp("models"), {}
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())

    def uri(mode, interface):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            if (mode, interface) not in built:
                built[mode, interface] = build(
                    command_line.compose("build", [f"mode={mode}", f"interface={interface}"]), checkpoint
                )
        return f"models:/{built[mode, interface]}", f"sqlite:///{folder}/mlflow.db"

    return uri


@pytest.fixture
def loaded(uris, monkeypatch, request):
    mode, interface = getattr(request, "param", ("pyfunc", "chat"))
    uri, store = uris(mode, interface)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with asking.loaded(uri) as model:
        yield model
