"""docs/azure.md: what can be checked without the cloud."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import mlflow
import pandas as pd
import pytest
import yaml

from steps import command_line
from steps.modes import get_mode
from tests.conftest import PROJECT, SPAIN
from tests.handover.conftest import commands, execute
from tests.modes.test_seam import INSTALLED_MODES

AZURE = PROJECT / "docs" / "azure"
FILES = {file.stem: yaml.safe_load(file.read_text()) for file in AZURE.glob("*.yml")}
PAGE = (PROJECT / "docs" / "azure.md").read_text()
ANSWER = "The capital of Spain is Madrid."
LOADERS = {
    "endpoint": "load_online_endpoint",
    "deployment": "load_online_deployment",
    "deployment-image": "load_online_deployment",
}
# Its parent package is a namespace, which may be missing too.
INSTALLED = importlib.util.find_spec("azure") and importlib.util.find_spec("azure.ai.ml")
needs_azure = pytest.mark.skipif(not INSTALLED, reason="pip install azure-ai-ml")
# It uses what marshmallow, which reads the files, has deprecated.
its_own_warnings = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(champion):
    """Run the page's first command, which exports the champion; return the folder."""
    (export,) = commands("azure.md", "mlflow artifacts download")
    execute(export, champion)
    return champion / "champion"


@pytest.mark.slow
def test_the_script_asks_the_exported_folder(exported, champion):
    (script,) = commands("azure.md", "python docs/azure/score.py")
    reply = json.loads(execute(script, champion))
    assert reply["choices"][0]["message"]["content"] == ANSWER


def test_the_reply_on_the_page_is_the_real_one(exported):
    model = mlflow.pyfunc.load_model(str(exported))
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.S)[1])
    reply = model.predict(json.loads((AZURE / "request.json").read_text()))
    assert shown == {key: value for key, value in reply.items() if key not in ("id", "created")}
    table = json.loads((AZURE / "request-no-code.json").read_text())["input_data"]
    (reply,) = model.predict(pd.DataFrame(**table))
    assert shown == {key: value for key, value in reply.items() if key not in ("id", "created")}


def test_the_script_explains_a_wrong_call():
    done = subprocess.run([sys.executable, AZURE / "score.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: Give a folder and a question, got 0 arguments.\n"


def test_the_commands_take_out_only_what_they_say(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "champion")
    before = read_pins(tmp_path)
    (without_pydantic,) = commands("azure.md", "grep")
    (for_the_plugin,) = commands("azure.md", "sed")
    execute(f"{without_pydantic}\n{for_the_plugin}", tmp_path)
    after = read_pins(tmp_path)
    assert {line.partition("==")[0] for line in set(before) - set(after)} == {"pydantic", "pydantic-core"}
    plugin = set((tmp_path / "azure-requirements.txt").read_text().split())
    changed = {line.partition("==")[0] for line in set(before) - plugin}
    assert changed == {"mlflow", "mlflow-skinny", "mlflow-tracing", "pandas", "cryptography"}
    assert plugin - set(before) == {"mlflow==3.15.0", "mlflow-skinny==3.15.0", "mlflow-tracing==3.15.0"}


def test_the_files_name_each_other_and_what_exists():
    endpoint = FILES["endpoint"]["name"]
    deployments = [content for name, content in FILES.items() if name != "endpoint"]
    assert {content["endpoint_name"] for content in deployments} == {endpoint}
    model = command_line.compose("serve", []).registered_model
    assert FILES["deployment"]["model"] == f"azureml:{model}:1"
    image = FILES["deployment-image"]["environment"]["image"]
    assert image in (PROJECT / "docs" / "kubernetes" / "champion.yaml").read_text()
    assert image in (PROJECT / "docs" / "image.md").read_text()
    az = commands("azure.md", "az ")
    assert len(az) == 7
    for command in az:
        for path in re.findall(r"docs/\S+", command):
            assert (PROJECT / path).is_file(), path
        names = re.findall(r"online-endpoint (?:invoke|update) --name (\S+)", command)
        assert set(names) <= {endpoint}
        colours = re.findall(r"(?:--deployment-name |[ \"])(blue|green)\b", command)
        assert set(colours) <= {content["name"] for content in deployments}


@pytest.mark.service
@needs_azure
@its_own_warnings
@pytest.mark.parametrize("name", LOADERS)
def test_a_file_follows_the_schema(name):
    import azure.ai.ml

    loaded = getattr(azure.ai.ml, LOADERS[name])(AZURE / f"{name}.yml")
    assert loaded.name == FILES[name]["name"]
    assert set(FILES) == set(LOADERS)


@pytest.mark.service
@needs_azure
@its_own_warnings
@pytest.mark.parametrize("name", LOADERS)
def test_the_schema_notices_a_wrong_key(name, tmp_path):
    import azure.ai.ml
    from azure.ai.ml.exceptions import ValidationException
    from marshmallow import ValidationError

    (tmp_path / "wrong.yml").write_text(yaml.safe_dump(FILES[name] | {"instance_tipe": "x"}))
    with pytest.raises((ValidationError, ValidationException)):
        getattr(azure.ai.ml, LOADERS[name])(tmp_path / "wrong.yml")


@pytest.mark.service
@needs_azure
@its_own_warnings
def test_the_registration_follows_the_schema(exported):
    import azure.ai.ml

    (command,) = commands("azure.md", "az ml model create")
    options = dict(re.findall(r"--(\w+) (\S+)", command))
    overrides = [{key: str(exported) if key == "path" else value} for key, value in options.items()]
    loaded = azure.ai.ml.load_model(None, params_override=overrides)
    assert (loaded.name, loaded.version, loaded.type) == ("phi3", "1", "mlflow_model")


AZURES_PACKAGES = {"azureml-mlflow": "sed", "azureml-inference-server-http": "grep"}
needs_uv = pytest.mark.skipif(shutil.which("uv") is None, reason="pip install uv")


def prepared(folder, package):
    """Run the page's command that makes room for a package of Azure; return the file with the requirements."""
    execute("\n".join(commands("azure.md", AZURES_PACKAGES[package])), folder)
    file = folder / "azure-requirements.txt"
    if not file.exists():
        file.write_text("\n".join(read_pins(folder)))
    return file


def read_pins(folder):
    """Return the pins in the conda.yaml of the exported champion."""
    return yaml.safe_load((folder / "champion" / "conda.yaml").read_text())["dependencies"][-1]["pip"]


@pytest.mark.slow
@pytest.mark.service
@needs_uv
@pytest.mark.parametrize("package", AZURES_PACKAGES)
def test_the_folder_answers_next_to_azures_package(exported, tmp_path, package):
    shutil.copytree(exported, tmp_path / "champion")
    (tmp_path / "docs").symlink_to(PROJECT / "docs")
    requirements = prepared(tmp_path, package)
    environment = tmp_path / "environment"
    execute(f"uv venv -q --python '{sys.executable}' environment", tmp_path)
    execute(f"uv pip install -q --python environment/bin/python -r '{requirements}' {package}", tmp_path)
    execute("uv pip check -q --python environment/bin/python", tmp_path)
    reply = execute(f"'{environment}/bin/python' docs/azure/score.py champion '{SPAIN}'", tmp_path)
    assert json.loads(reply)["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.slow
@pytest.mark.service
@needs_uv
@pytest.mark.parametrize("package", AZURES_PACKAGES)
@pytest.mark.parametrize("mode", INSTALLED_MODES)
def test_the_pins_of_every_mode_agree_with_azures_package(tmp_path, mode, package):
    pins = get_mode(mode).whole_requirements
    (tmp_path / "champion").mkdir()
    (tmp_path / "champion" / "requirements.txt").write_text("\n".join(pins))
    (tmp_path / "champion" / "conda.yaml").write_text(yaml.safe_dump({"dependencies": [{"pip": pins}]}))
    requirements = prepared(tmp_path, package)
    with requirements.open("a") as file:
        file.write(f"\n{package}\n")
    assert f"{package}==" in execute(f"uv pip compile -q --python '{sys.executable}' '{requirements}'", tmp_path)
