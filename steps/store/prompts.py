"""Keep each variant's prompting in MLflow's prompt registry, with versions.

The prompt is named `phi3.prompting.<name of the prompting>`, which no registered model may be called: MLflow keeps both
in one table of names. A version is added only for a text that the prompt does not have yet, and linked to the variant's
LoggedModel and run. Earlier versions named it `phi3-<name of the prompting>`; those prompts stay as they are.
"""

from typing import TYPE_CHECKING

from steps.checkpoints.prompting import example_messages, system_messages
from steps.config.schema import PROMPT_PREFIX, Prompting
from steps.errors import StepError
from steps.output import suppress_output
from steps.store.collisions import retried

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

QUESTION = {"role": "user", "content": "{{question}}"}


def link(prompting: Prompting, model_id: str, run_id: str) -> str:
    """Register the prompting, link it to a variant, and return its URI, `prompts:/name/version`."""
    import mlflow

    client = mlflow.MlflowClient()
    prompt = retried(_find_or_register, client, prompt_name(prompting), template(prompting))
    client.link_prompt_version_to_model(prompt.name, str(prompt.version), model_id)
    client.link_prompt_version_to_run(run_id, prompt)
    return f"prompts:/{prompt.name}/{prompt.version}"


def check_name(prompting: Prompting) -> None:
    """Raise StepError if a registered model has the name of the prompt: another program may have made one."""
    import mlflow
    from mlflow.exceptions import MlflowException

    name = prompt_name(prompting)
    try:
        mlflow.MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return
        raise
    raise StepError(
        f"The prompt {name} cannot be registered, because there is a registered model of that name. Rename the model, "
        "or give the prompting another name: -P prompting.name=…"
    )


def is_prompt(client: "MlflowClient", name: str) -> bool:
    """Return True if a name is that of a prompt, and so cannot be that of a registered model."""
    return client.get_prompt(name) is not None


def template(prompting: Prompting) -> list[dict[str, str]]:
    """Return the conversation that a model sees for one question, in the format of MLflow's chat prompts."""
    return [*system_messages(prompting), *example_messages(prompting), QUESTION]


def prompt_name(prompting: Prompting) -> str:
    """Return the name of the prompt in the registry."""
    return f"{PROMPT_PREFIX}{prompting.name}"


def _find_or_register(client: "MlflowClient", name: str, messages: list[dict[str, str]]) -> "PromptVersion":
    """Return the first version with exactly these messages; register a new one if there is none.

    Builds that do this at the same moment may register it more than once. All of them get the first, and the others
    stay: MLflow cannot list the versions of a prompt while one of them is deleted.
    """
    import mlflow

    if prompt := _first_version(client, name, messages):
        return prompt
    with suppress_output():  # with a server, MLflow logs that it waits
        added = mlflow.genai.register_prompt(name, messages)
    return _first_version(client, name, messages) or added


def _first_version(client: "MlflowClient", name: str, messages: list[dict[str, str]]) -> "PromptVersion | None":
    """Return the first version with exactly these messages; None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        versions: list[PromptVersion] = list(client.search_prompt_versions(name, max_results=1000))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    same = (prompt for prompt in versions if prompt.template == messages)
    return min(same, key=lambda prompt: int(prompt.version), default=None)
