"""The main job on a GPU: torch's two modes are built, asked, measured, compared and promoted there."""

import mlflow
import pytest

from steps.store.variants import find_variants
from tests.gpu import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.mark.slow
def test_a_champion_is_made_on_a_gpu(typed, checkpoint):
    on_gpu = [f"[mode=pyfunc, precision={name}, mode.device=cuda]" for name in ("fp32", "bf16")]
    done = typed("main", f"variants=[{on_gpu[0]}, {on_gpu[1]}, [mode=transformers]]")
    assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient()
    assert len(find_variants(client, "0")) == 3
    assert int(client.get_model_version_by_alias("phi3", "champion").version) == 1
