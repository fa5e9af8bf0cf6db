"""Serve the version that an alias names, with OpenAI's routes, and go over to another one when the alias moves.

    python -m steps.serve port=5001
    mlflow run . -e serve -P follow=true -P key_file=keys.txt

Reads conf/serve.yaml and the model registry. Writes nothing. Ends on SIGTERM or Ctrl-C with exit code 0, after the
requests that are being answered. docs/serving.md describes the routes.
"""

from __future__ import annotations

from steps import command_line
from steps.config.serve import ServeConfig
from steps.output import echo
from steps.service.server import serve_until_stopped


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        StepError: The alias names no version, or its model does not answer.
    """
    scheme = "https" if config.certificate_file else "http"
    echo(f"Serving models:/{config.registered_model}@{config.alias} at {scheme}://{config.host}:{config.port}")
    serve_until_stopped(config)
    echo("Stopped: every request that was begun is finished, or its time was over.")


def main() -> None:
    """Run the step from the command line."""
    command_line.run("serve", serve)


if __name__ == "__main__":
    main()
