"""The README's commands with a real `mlflow run`, in a copy of the project with its own store, from nothing.

The tests run in their order: they go on in the same project, as a user does.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from steps.evaluation import asking
from tests.conftest import PROJECT, SPAIN
from tests.end_to_end import tour
from tests.end_to_end.project import Project
from tests.support import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, caches, checkpoint):
    """Return the project after its first main job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        project = Project(tmp_path_factory.mktemp("main") / "phi3-mlflow", caches)
        project.first = project.run()
        yield project


@pytest.fixture(scope="module")
def variants(project):
    """Return the runs of the variants that the main job built."""
    return [run for run in project.runs() if "phi3.fingerprint" in run.data.tags]


def test_the_main_job_ends_with_a_leaderboard_a_champion_and_two_commands(project, variants):
    output = project.first.stdout
    assert "Leaderboard on facts, 118 rows, best first" in output
    assert re.search(r"Promoted \S+ to phi3@champion \(version 1\)", output)
    assert "★" in output
    assert re.search(r"^    mlflow ui --port 5000$", output, re.MULTILINE)
    assert "\n    mlflow models serve -m models:/phi3@champion --env-manager local --port 5001\n" in output
    page = project.client.get_registered_model("phi3").description
    assert "`mlflow run . -e register --env-manager local -P registered_model=phi3 -P action=rollback`" in page
    assert re.findall(r"http://\S+", output) == [
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=facts"
    ]
    table = output[output.index("facts, 118 rows") :].split("Compare the runs")[0]
    assert max(map(len, table.splitlines()[: 4 + len(variants)])) <= 80
    # Who wins, and by which of the reasons of tests/promotion, depends on measured times: it is what was promoted.
    version = project.client.get_model_version_by_alias("phi3", "champion").tags
    champion, reason = version["phi3.variant"], version["phi3.reason"]
    assert reason.startswith(f"there was no champion; {champion} has ")
    assert f"★ {champion}: {reason}." in table.splitlines()
    assert re.search(rf"^ ★ +{re.escape(champion)} ", table, re.M)
    scores = re.findall(r"-\S+ +(0\.\d{3}) ", table)
    assert len(scores) == len(variants)
    assert scores == sorted(scores, reverse=True)


def test_each_variant_has_a_finished_child_run_with_parameters_and_scores(project, variants):
    (parent,) = [run for run in project.runs() if run.info.run_name == "main"]
    assert len(variants) >= 5
    assert {run.data.params["mode"] for run in variants} == {"transformers", "pyfunc", "onnx", "openvino"}
    for run in variants:
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["model"] == "miniature"
        assert "generation.temperature" in run.data.params
        assert {"answer_match/mean", "exact_match/mean", "token_f1/mean", "rouge_l/mean", "chrf/mean"} <= set(
            run.data.metrics
        )
        assert run.data.metrics["size/bytes"] > 100_000


def test_all_variants_are_scored_on_the_same_dataset(variants):
    assert len({entry.dataset.digest for run in variants for entry in run.inputs.dataset_inputs}) == 1


def test_the_scores_show_the_effects_of_prompting_and_temperature(variants):
    by_name = {run.info.run_name: run.data.metrics for run in variants}
    plain, brief = by_name["pyfunc-fp32-chat"], by_name["pyfunc-fp32-chat-brief"]
    assert plain["answer_match/mean"] > 0.8
    assert brief["exact_match/mean"] > plain["exact_match/mean"] + 0.3
    assert by_name["pyfunc-fp32-chat-t1"]["answer_match/mean"] < plain["answer_match/mean"]
    assert len({run.data.metrics["chrf/mean"] for run in variants}) >= 4


def test_our_wrappers_pass_the_whole_contract_suite_and_the_stock_flavour_does_not(variants):
    for run in variants:
        passed, total = run.data.metrics["contract/passed"], run.data.metrics["contract/total"]
        assert total >= 25
        table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/contract.json")
        faults = {name: fault for name, passed_check, fault in table["data"] if not passed_check}
        assert len(faults) == total - passed
        if run.data.params["mode"] == "transformers":
            assert {"n 1", "stream false", "an unknown role", "one object for one conversation"} <= set(faults)
        else:
            assert faults == {}


def test_greedy_answers_are_the_same_in_all_modes(project, variants):
    answers = {}
    for run in variants:
        if run.info.run_name in ("transformers-fp32-chat", "pyfunc-fp32-chat", "onnx-fp32-chat"):
            table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/eval_results_table.json")
            column = table["columns"].index("outputs")
            answers[run.info.run_name] = [row[column] for row in table["data"]]
    assert len(answers) == 3
    first, *others = answers.values()
    assert all(other == first for other in others)
    assert len(first) >= 60


def test_each_run_has_its_configuration_and_manifests_as_artifacts(project, variants):
    names = [file.path for file in project.client.list_artifacts(variants[0].info.run_id)]
    assert {"config.yaml", "checkpoint.json", "environment.json", "eval_results_table.json"} <= set(names)


def test_the_champion_answers_without_the_project_on_the_path(project, tmp_path):
    program = PROJECT / "tests" / "end_to_end" / "ask_champion.py"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", program, f"sqlite:///{project.folder}/mlflow.db", SPAIN],
        cwd=tmp_path,
        env=project.environment | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    champion = json.loads(done.stdout.strip().splitlines()[-1])
    assert "Madrid" in champion["answer"]
    assert json.loads(champion["signature"]["inputs"])[0]["name"] == "messages"
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in champion["requirements"].split())


def test_a_second_main_job_reuses_everything(project, variants):
    done = project.run()
    assert "Built" not in done.stdout
    assert done.stdout.count("Ready already") == len(variants)
    assert not any(re.fullmatch(r"[a-z]+-[a-z]+-\d+", run.info.run_name) for run in project.runs())
    assert "All variants are already scored on facts (118 rows)." in done.stdout
    assert "Nothing changes: the champion" in done.stdout
    assert "★" in done.stdout


def test_a_dry_run_of_register_starts_no_run(project):
    before = len(project.runs())
    done = project.type(sys.executable, "-m", "steps.register", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Dry run: nothing would change: the champion")
    assert len(project.runs()) == before


def test_the_tour_of_the_readme(project, tmp_path_factory):
    """Replace only what differs here: the environment, the port, and the folder of the user's own model."""
    (_, shown), *rest = tour.COMMANDS
    assert len(rest) == 5
    assert tour.missing_lines(shown, project.first.stdout) == []
    model, port = tour.train_own_model(tmp_path_factory.mktemp("own")), free_port()
    with contextlib.ExitStack() as stack:
        for command, shown in rest:
            command = command.replace("--env-manager uv", "--env-manager local").replace("5001", str(port))
            command = command.replace("/models/phi-3", str(model))
            if command.startswith("mlflow models serve"):
                stack.enter_context(project.serving(command, port))
                continue
            done = project.type("bash", "-ec", command)
            assert done.returncode == 0, command + done.stdout[-2000:] + done.stderr[-2000:]
            assert tour.missing_lines(shown, done.stdout) == [], (command, done.stdout)


def test_a_sweep_has_a_parent_run_and_a_child_run_for_each_point(project):
    before = {run.info.run_id for run in project.runs()}
    text = "Answer briefly, please: $(touch marker) ${oc.env:HOME} ${ 'yes'; `id`"
    overrides = ("mode=onnx", "precision=fp32,int4", f"prompting.system={text}", "generation.temperature=0")
    project.run("-e", "build", *(argument for override in overrides for argument in ("-P", override)))
    parent, *children = [run for run in project.runs() if run.info.run_id not in before]
    assert parent.info.run_name == "build-sweep"
    assert [child.data.params["precision"] for child in children] == ["fp32", "int4"]
    assert all(child.data.tags["mlflow.parentRunId"] == parent.info.run_id for child in children)
    assert all(child.data.params["prompting.system"] == text for child in children)
    assert not (project.folder / "marker").exists()
    assert not (project.folder / "multirun.yaml").exists()


def test_a_single_build_is_the_projects_run_and_evaluate_takes_its_id(project, typed, monkeypatch):
    before = {run.info.run_id for run in project.runs()}
    project.run("-e", "build", "-P", "mode=onnx", "-P", "interface=prompt", "-P", "prompting.system=Be brief.")
    (run,) = [run for run in project.runs() if run.info.run_id not in before]
    assert re.fullmatch("onnx-fp32-prompt-prompt-[0-9a-f]{4}", run.info.run_name)
    assert run.data.tags["mlflow.project.entryPoint"] == "build"
    with project.here(monkeypatch):
        done = typed("evaluate", f"run_id={run.info.run_id}", "evaluate.speed=false")
    assert done.stdout.count("Scored ") == 1
    (scored,) = [other for other in project.runs() if other.info.run_id == run.info.run_id]
    assert scored.data.metrics["answer_match/mean"] > 0.5
    raw = f"<|system|>You are a stand-up comedian.<|end|><|user|>{SPAIN}<|end|><|assistant|>"
    (model_id,) = [model.model_id for model in run.outputs.model_outputs]
    with project.here(monkeypatch), asking.loaded(f"models:/{model_id}") as model:
        answer, answer_to_raw = model.predict({"prompt": SPAIN}), model.predict({"prompt": raw})
        answers = model.predict([{"prompt": SPAIN}, {"prompt": SPAIN}])
    assert "Madrid" in answer
    assert isinstance(answer_to_raw, str)
    assert answers == [answer] * 2


def test_register_promotes_the_best_variant_within_the_limits(project, typed, monkeypatch):
    with project.here(monkeypatch):
        # onnx-int4-chat is larger. If both were within the limit, the faster one would win.
        done = typed("register", "promotion.limits={size/bytes: {max: 850000}}", "registered_model=tiny")
    assert re.search(r"Promoted openvino-int8-\S+ to tiny@champion \(version 1\)", done.stdout)


def test_only_variants_of_one_interface_compete(project, typed, monkeypatch):
    prompt = ["promotion.interface=prompt", "registered_model=texts", "promotion.smoke=false"]
    with project.here(monkeypatch):
        first = typed("register", *prompt)
        # The champion's interface is the model's from now on, and the chat variants score higher.
        second = typed("register", *prompt[1:])
        unknown = typed("register", "promotion.interface=speech", "dry_run=true")
    assert "Promoted onnx-int4-prompt to texts@champion (version 1)" in first.stdout
    assert "pyfunc-fp32-chat has interface=chat, and clients of texts send prompt" in first.stdout
    assert "Nothing changes: the champion onnx-int4-prompt is already the best" in second.stdout
    assert (unknown.returncode, unknown.stderr[:36]) == (1, "error: Unknown interface 'speech'. A")
