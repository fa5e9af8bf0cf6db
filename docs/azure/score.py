"""Ask a model's folder one question, without a server or a store.

    python docs/azure/score.py FOLDER "What is the capital of Spain?"

Needs only the model's own requirements. Prints the reply as JSON.
"""

import json
import sys


def main() -> None:
    """Load the folder, ask the question and print the reply."""
    if len(sys.argv) != 3:
        sys.exit(f"error: Give a folder and a question, got {len(sys.argv) - 1} arguments.")
    folder, question = sys.argv[1:]
    # After the check, because it takes seconds.
    import mlflow

    model = mlflow.pyfunc.load_model(folder)
    if "messages" in model.metadata.get_input_schema().input_names():
        request = {"messages": [{"role": "user", "content": question}]}
    else:
        request = {"prompt": question}
    print(json.dumps(model.predict(request), indent=2))


if __name__ == "__main__":
    main()
