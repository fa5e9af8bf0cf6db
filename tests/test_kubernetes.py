"""The manifests of docs/kubernetes follow Kubernetes' own schemas, and name what exists here."""

import importlib.util
import re

import pytest
import yaml

from tests.conftest import PROJECT

FILES = sorted((PROJECT / "docs" / "kubernetes").glob("*.yaml"))
OBJECTS = [(file.name, content) for file in FILES for content in yaml.safe_load_all(file.read_text())]
# A version that the package has the schemas of.
VERSION = "1.31"


@pytest.mark.service
@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="pip install kubernetes-validate")
@pytest.mark.parametrize(
    ("name", "content"), OBJECTS, ids=lambda value: value if isinstance(value, str) else value["kind"]
)
def test_a_manifest_follows_the_schema_strictly(name, content):
    import kubernetes_validate

    assert kubernetes_validate.validate(content, VERSION, strict=True).startswith(VERSION)


@pytest.mark.service
@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None, reason="pip install kubernetes-validate")
def test_the_schema_notices_a_wrong_key():
    import kubernetes_validate

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(OBJECTS[0][1] | {"spek": {}}, VERSION, strict=True)


def test_the_job_runs_a_step_that_exists_and_keeps_no_secret():
    (job,) = (content for _, content in OBJECTS if content["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    step = re.fullmatch(r"python -m steps\.(\w+)", " ".join(container["command"]))[1]
    assert (PROJECT / "steps" / f"{step}.py").is_file()
    assert not [entry for entry in container["env"] if re.search("TOKEN|PASSWORD|SECRET", entry["name"])]


def test_the_champion_has_all_three_probes():
    (deployment,) = (content for _, content in OBJECTS if content["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
    assert probes == dict.fromkeys(["startupProbe", "readinessProbe", "livenessProbe"], "/ping")
