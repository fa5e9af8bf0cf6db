"""Load the champion as its users do, with MLflow alone, and print its answer, signature and requirements as JSON.

    python -P tests/end_to_end/ask_champion.py TRACKING_URI QUESTION

Imports nothing of this project; `-P` keeps this folder off the path too.
"""

import json
import sys
from pathlib import Path

import mlflow

CHAMPION = "models:/phi3@champion"


def main(tracking_uri: str, question: str) -> None:
    """Ask the champion of a store."""
    mlflow.set_tracking_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(CHAMPION)
    reply = model.predict({"messages": [{"role": "user", "content": question}]})
    content = {
        "answer": reply["choices"][0]["message"]["content"],
        "signature": model.metadata.signature.to_dict(),
        "requirements": Path(mlflow.artifacts.download_artifacts(CHAMPION), "requirements.txt").read_text(),
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
