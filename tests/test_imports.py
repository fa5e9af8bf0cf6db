"""A step that does not need an engine does not load one."""

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

HEAVY = ("torch", "transformers", "datasets", "evaluate", "onnxruntime", "onnxruntime_genai")


@pytest.mark.parametrize("module", ["steps.register", "steps.build", "steps.evaluate", "steps.main"])
def test_import_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrappers_import_nothing_of_the_project_outside_themselves():
    for file in (PROJECT / "steps" / "wrappers").glob("*.py"):
        assert "steps" not in file.read_text().replace("steps/", ""), file.name
