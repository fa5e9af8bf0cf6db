"""Keep each variant's prompting in MLflow's prompt registry, with versions.

The prompt is named `phi3-<name of the prompting>`. A version is added only for a text that the prompt does not have
yet, and linked to the variant's LoggedModel and run.
"""

from typing import TYPE_CHECKING

from steps.checkpoints.prompting import example_messages, system_messages
from steps.config.schema import Prompting

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

QUESTION = {"role": "user", "content": "{{question}}"}


def link(prompting: Prompting, model_id: str, run_id: str) -> str:
    """Register the prompting, link it to a variant, and return its URI, `prompts:/name/version`."""
    import mlflow

    client = mlflow.MlflowClient()
    prompt = _registered_version(client, prompt_name(prompting), template(prompting))
    client.link_prompt_version_to_model(prompt.name, str(prompt.version), model_id)
    client.link_prompt_version_to_run(run_id, prompt)
    return f"prompts:/{prompt.name}/{prompt.version}"


def template(prompting: Prompting) -> list[dict[str, str]]:
    """Return the conversation that a model sees for one question, in the format of MLflow's chat prompts."""
    return [*system_messages(prompting), *example_messages(prompting), QUESTION]


def prompt_name(prompting: Prompting) -> str:
    """Return the name of the prompt in the registry."""
    return f"phi3-{prompting.name}"


def _registered_version(client: "MlflowClient", name: str, messages: list[dict[str, str]]) -> "PromptVersion":
    """Return the first version with exactly these messages; register a new one if there is none."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        versions: list[PromptVersion] = list(client.search_prompt_versions(name, max_results=1000))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        versions = []
    for prompt in sorted(versions, key=lambda prompt: int(prompt.version)):
        if prompt.template == messages:
            return prompt
    added: PromptVersion = mlflow.genai.register_prompt(name, messages)
    return added
