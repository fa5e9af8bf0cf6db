"""A variant that is there is not built again, and names tell variants apart."""

import mlflow
import pytest

from steps.store.variants import find_variants


@pytest.mark.slow
def test_build_reuses_a_variant_unless_it_is_forced(typed, checkpoint):
    assert typed("build", "mode=onnx").stdout.startswith("Built onnx-fp32-chat: ")
    done = typed("build", "mode=onnx")
    assert done.returncode == 0
    assert done.stdout.startswith("Ready already: onnx-fp32-chat (models:/m-")
    assert typed("build", "mode=onnx", "force=true").stdout.startswith("Built onnx-fp32-chat-copy2: ")
    variants = find_variants(mlflow.MlflowClient(), "0")
    assert [variant.name for variant in variants] == ["onnx-fp32-chat", "onnx-fp32-chat-copy2"]
    assert len({variant.fingerprint for variant in variants}) == 1
    run = mlflow.get_run(variants[0].run_id)
    assert not [key for key in run.data.params if "/" in key or key in ("force", "check", "name")]
