"""The job of docs/scale.md on a local Spark gives the answers of predict."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from tests.batch.conftest import CHAMPIONS
from tests.batch.test_score import TEXTS, predicted
from tests.conftest import PROJECT

pytestmark = pytest.mark.service
MISSING = next((name for name in ("pyspark",) if importlib.util.find_spec(name) is None), None)
JOB = re.search(r"```python\n(.*?)```", (PROJECT / "docs" / "scale.md").read_text(), re.DOTALL)[1]


@pytest.mark.skipif(MISSING is not None, reason="pyspark is not installed: pip install pyspark")
@pytest.mark.skipif(
    shutil.which("java") is None, reason="Java is not installed: apt-get install openjdk-17-jre-headless"
)
@pytest.mark.parametrize("name", CHAMPIONS)
def test_the_job_in_the_docs_answers_as_predict_does(champions, tmp_path, name):
    table = pyarrow.Table.from_pylist([{"key": key, "prompt": text} for key, text in enumerate(TEXTS)])
    parquet.write_table(table, tmp_path / "questions.parquet")
    variables = {
        "MODEL": f"models:/{name}@champion",
        "INTERFACE": CHAMPIONS[name],
        "INPUT": str(tmp_path / "questions.parquet"),
        "OUTPUT": str(tmp_path / "answers.parquet"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOB],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = sorted(parquet.read_table(tmp_path / "answers.parquet").to_pylist(), key=lambda row: row["key"])
    assert [row["answer"] for row in rows] == predicted(name, TEXTS)
