"""What is tested in addition where torch can use a GPU."""

import pytest
import torch

# Names of engines, as the fixtures in tests/wrappers/conftest.py have them.
GPU = ["gpu"] if torch.cuda.is_available() else []
NEEDS_GPU = pytest.mark.skipif(not GPU, reason="needs a GPU that torch can use")
