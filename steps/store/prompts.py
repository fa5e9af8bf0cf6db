"""MLflow's prompt registry: what a variant puts before every conversation, in words, with versions.

Writes the prompt `phi3-<name of the prompting>`, with a new version only for a text that it does not have yet, and
links the version to the variant's LoggedModel and run.
"""

from typing import Any

from steps.config.schema import Prompting

QUESTION = {"role": "user", "content": "{{question}}"}


def link(prompting: Prompting, model_id: str, run_id: str) -> str:
    """Have the prompting registered and linked to a variant; returns its address, `prompts:/name/version`."""
    import mlflow

    client = mlflow.MlflowClient()
    prompt = _registered(client, prompt_name(prompting), template(prompting))
    client.link_prompt_version_to_model(prompt.name, str(prompt.version), model_id)
    client.link_prompt_version_to_run(run_id, prompt)
    return f"prompts:/{prompt.name}/{prompt.version}"


def template(prompting: Prompting) -> list[dict[str, str]]:
    """The conversation that a model sees of one question, in the form of MLflow's chat prompts."""
    opening = [{"role": "system", "content": prompting.system}] if prompting.system else []
    examples = [
        {"role": role, "content": getattr(example, role)}
        for example in prompting.examples
        for role in ("user", "assistant")
    ]
    return [*opening, *examples, QUESTION]


def prompt_name(prompting: Prompting) -> str:
    """The name in the registry."""
    return f"phi3-{prompting.name}"


def _registered(client: Any, name: str, wanted: list[dict[str, str]]) -> Any:
    """The version with this very text, the first one that has it; a new one where none has."""
    import mlflow

    for prompt in sorted(_versions(client, name), key=lambda prompt: int(prompt.version)):
        if prompt.template == wanted:
            return prompt
    return mlflow.genai.register_prompt(name, wanted)


def _versions(client: Any, name: str) -> list[Any]:
    from mlflow.exceptions import MlflowException

    try:
        return client.search_prompt_versions(name, max_results=1000)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
