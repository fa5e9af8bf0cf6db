"""The model that `mode=onnx` logs from code."""

from mlflow.models import set_model
from wrappers.model import Phi3Model  # type: ignore[import-not-found]

set_model(Phi3Model("onnxruntime"))
