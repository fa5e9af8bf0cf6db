"""Let `mlflow models predict` and `mlflow.models.predict` read their input as the scoring server does.

They have functions of their own for that, which accept no frame for a model that checks its requests itself, and which
read the text NA of a CSV table as a missing value and 007 as a number. They call one of them right after they have
loaded the model.
"""

import os
import sys
from pathlib import Path
from typing import Any

from ..contract.body import JSON, FrameRows, read_csv, rewrite_body
from .app import SERVER_MODULE

READER_MODULE = "mlflow.pyfunc.scoring_server"
READERS = ("_parse_json_data", "parse_csv_input")


def extend_prediction(frame_rows: FrameRows) -> None:
    """If such a prediction is loading a model, replace MLflow's functions until one of them is called."""
    module: Any = sys.modules.get(READER_MODULE)
    is_prediction = os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true" and SERVER_MODULE not in sys.modules
    if not is_prediction or not all(hasattr(module, name) for name in READERS):
        return
    parse_json, parse_csv = (getattr(module, name) for name in READERS)

    def restore() -> None:
        module._parse_json_data, module.parse_csv_input = parse_json, parse_csv

    # MLflow gives the arguments by these names.
    def read_json(data: str, metadata: Any, input_schema: Any) -> Any:
        restore()
        return parse_json(rewrite_body(data.encode(), JSON, frame_rows), metadata, input_schema)

    def read_table(csv_input: Any, schema: Any = None) -> Any:
        restore()
        if isinstance(csv_input, str) and not Path(csv_input).is_file():
            return parse_csv(csv_input, schema)  # pandas knows what it is, or says that there is none
        content = Path(csv_input).read_bytes() if isinstance(csv_input, str) else csv_input.read().encode()
        return frame_rows(read_csv(content))

    module._parse_json_data, module.parse_csv_input = read_json, read_table
