"""A step that does not need an engine does not load one."""

import ast
import subprocess
import sys

import pytest
from steps.modes.flavors import REQUIREMENTS, WRAPPERS

from tests.conftest import PROJECT

HEAVY = ("torch", "transformers", "datasets", "evaluate", "onnxruntime", "onnxruntime_genai")


@pytest.mark.parametrize("module", ["steps.register", "steps.build", "steps.evaluate", "steps.main"])
def test_import_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrappers_do_not_refer_to_the_rest_of_the_project():
    for file in (PROJECT / "steps" / "wrappers").rglob("*.py"):
        assert "steps" not in file.read_text().replace("steps/", ""), file.name


# The files that only one mode uses, and the packages that come with MLflow's own server.
OWN = {
    "pyfunc": {"torch_engine", "torch_precision", "growing_cache", "packed_linear", "pyfunc_model"},
    "onnx": {"onnx_providers", "onnx_engine", "genai_engine", "onnx_model"},
}
SERVER = {"fastapi"}
ITSELF = {"wrappers"}


@pytest.mark.parametrize("mode", OWN)
def test_requirements_of_a_mode_are_the_packages_that_its_code_imports(mode):
    others = set().union(*OWN.values()) - OWN[mode]
    names = {name for file in WRAPPERS.rglob("*.py") if file.stem not in others for name in _imported(file)}
    needed = {name.replace("_", "-") for name in names - ITSELF - SERVER - sys.stdlib_module_names}
    assert needed == set(REQUIREMENTS[mode])


def _imported(file):
    """Yield the packages that a file imports anywhere, without relative imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]
