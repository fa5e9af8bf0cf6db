"""Imports: a step loads no engine that it does not need, and a model pins all that its code imports."""

import ast
import subprocess
import sys

import pytest

from steps.modes import get_mode
from steps.modes.wrapper import WRAPPERS
from tests.conftest import PROJECT

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "openvino",
    "nncf",
)
# The files of one mode only, and what comes with MLflow's own server.
OWN = {
    "pyfunc": {
        *("torch_engine", "torch_batch", "torch_precision", "growing_cache", "packed_linear", "int8_linear"),
        *("int8_model", "grouped_attention"),
    },
    "onnx": {"onnx_engine", "onnx_cache", "onnx_session", "genai_engine", "onnx_providers"},
    "llama_cpp": {"flat_engine", "llama_cpp_engine", "llama_context"},
    "openvino": {"flat_engine", "openvino_engine", "openvino_context", "paged_attention", "paged_cache"},
}
SERVER = {"fastapi", "starlette"}
# Modules with another name than their package.
PACKAGES = {"llama_cpp": "llama-cpp-python"}


@pytest.mark.parametrize("module", ["steps.register", "steps.build", "steps.evaluate", "steps.main", "steps.serve"])
def test_a_step_starts_without_heavy_imports(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_done_before_anything_is_asked_needs_no_heavy_imports():
    """Every evaluation looks for leaks, also one that finds all variants scored already."""
    code = f"""
import sys
from steps import command_line
from steps.evaluation import leaks, prompt_set
rows = prompt_set.load(command_line.compose("evaluate", []).prompt_set)
leaks.leaked_rows(command_line.compose("build", ["prompting=few_shot"]).prompting, rows)
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrappers_import_nothing_of_the_project_outside_themselves():
    for file in WRAPPERS.rglob("*.py"):
        assert "steps" not in file.read_text().replace("steps/", ""), file.name


@pytest.mark.parametrize("mode", OWN)
def test_a_model_pins_all_that_its_code_imports(mode):
    others = set().union(*OWN.values()) - OWN[mode]
    names = {name for file in WRAPPERS.rglob("*.py") if file.stem not in others for name in _imported(file)}
    needed = {PACKAGES.get(name, name.replace("_", "-")) for name in names - SERVER - sys.stdlib_module_names}
    assert needed == set(get_mode(mode).packages)


def _imported(file):
    """The packages that a file imports anywhere, except its own."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]
