"""The README's commands through a real `mlflow run`, in a copy of the project with a store of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, SPAIN

LEFT_OUT = shutil.ignore_patterns(".git", "mlflow.db*", "mlruns", "__pycache__", ".*_cache", ".hypothesis")


class Project:
    """A copy of the project in which commands are typed."""

    def __init__(self, folder: Path, cache: Path):
        self.folder = shutil.copytree(PROJECT, folder, ignore=LEFT_OUT)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HYDRA_"))}
        self.environment = kept | {"PHI3_CACHE_DIR": str(cache / "phi3"), "HF_HOME": str(cache / "hf")}

    def type(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess:
        """`mlflow run .` in this very environment."""
        done = self.type("mlflow", "run", ".", "--env-manager", "local", *words)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def python(self, code: str) -> object:
        """The value that a piece of Python prints as JSON, seen from the project's store."""
        done = self.type(sys.executable, "-W", "ignore", "-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def runs(self) -> list[dict]:
        return self.python(
            "import mlflow, json\n"
            "runs = mlflow.MlflowClient().search_runs(['0'], order_by=['attributes.start_time ASC'])\n"
            "print(json.dumps([{'id': r.info.run_id, 'name': r.info.run_name, 'status': r.info.status,"
            " 'tags': r.data.tags, 'params': r.data.params, 'metrics': r.data.metrics,"
            " 'datasets': [d.dataset.digest for d in r.inputs.dataset_inputs]} for r in runs]))"
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory, caches, checkpoint):
    """The project after its first main job."""
    home = pytest.MonkeyPatch()
    home.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    project = Project(tmp_path_factory.mktemp("main") / "phi3-mlflow", caches)
    project.first = project.run()
    yield project
    home.undo()


@pytest.fixture(scope="module")
def variants(project):
    return [run for run in project.runs() if "phi3.fingerprint" in run["tags"]]


def test_main_ends_with_leaderboard_champion_and_the_two_commands(project, variants):
    output = project.first.stdout
    assert "Leaderboard on facts" in output
    assert re.search(r"Promoted \S+ to phi3@champion \(version 1\)", output)
    assert "★" in output
    assert re.search(r"^    mlflow ui --port 5000$", output, re.MULTILINE)
    assert re.search(r"^    mlflow models serve -m models:/phi3@champion --env-manager uv --port 5001$", output, re.M)
    (link,) = re.findall(r"http://\S+", output)
    assert all(run["id"] in link for run in variants)


def test_each_variant_is_a_finished_child_with_parameters_and_scores(project, variants):
    (parent,) = [run for run in project.runs() if run["name"] == "main"]
    assert len(variants) >= 5
    assert {run["params"]["mode"] for run in variants} == {"transformers", "pyfunc", "onnx"}
    for run in variants:
        assert run["status"] == "FINISHED"
        assert run["tags"]["mlflow.parentRunId"] == parent["id"]
        assert run["params"]["model"] == "miniature"
        assert "generation.temperature" in run["params"]
        assert {"answer_match/mean", "exact_match/mean", "token_f1/mean", "rouge_l/mean", "chrf/mean"} <= set(
            run["metrics"]
        )
        assert run["metrics"]["size/bytes"] > 100_000


def test_all_variants_share_one_dataset(variants):
    assert len({digest for run in variants for digest in run["datasets"]}) == 1


def test_the_scores_differ_for_honest_reasons(variants):
    by_name = {run["name"]: run["metrics"] for run in variants}
    plain, brief = by_name["pyfunc-fp32-chat"], by_name["pyfunc-fp32-chat-brief"]
    assert plain["answer_match/mean"] > 0.8
    assert brief["exact_match/mean"] > plain["exact_match/mean"] + 0.3
    assert by_name["pyfunc-fp32-chat-t1"]["answer_match/mean"] < plain["answer_match/mean"]
    assert len({run["metrics"]["chrf/mean"] for run in variants}) >= 4


def test_the_modes_answer_the_same_greedily(project, variants):
    answers = {}
    for run in variants:
        if run["name"] in ("transformers-fp32-chat", "pyfunc-fp32-chat", "onnx-fp32-chat"):
            table = project.python(
                "import mlflow, json; print(json.dumps(mlflow.artifacts.load_dict("
                f"'runs:/{run['id']}/eval_results_table.json')))"
            )
            column = table["columns"].index("outputs")
            answers[run["name"]] = [row[column] for row in table["data"]]
    assert len(answers) == 3
    first, *others = answers.values()
    assert all(other == first for other in others)
    assert len(first) >= 60


def test_each_run_tells_what_it_was_made_of(project, variants):
    run_id = variants[0]["id"]
    names = project.python(
        "import mlflow, json\n"
        f"print(json.dumps([file.path for file in mlflow.MlflowClient().list_artifacts('{run_id}')]))"
    )
    assert {"config.yaml", "checkpoint.json", "environment.json", "eval_results_table.json"} <= set(names)


def test_the_champion_answers_from_another_directory(project, tmp_path):
    code = (
        "import mlflow, json\n"
        f"mlflow.set_tracking_uri('sqlite:///{project.folder}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/phi3@champion')\n"
        f"reply = model.predict({{'messages': [{{'role': 'user', 'content': '{SPAIN}'}}]}})\n"
        "print(json.dumps([reply['choices'][0]['message']['content'], model.metadata.signature.to_dict(),"
        " open(mlflow.artifacts.download_artifacts('models:/phi3@champion') + '/requirements.txt').read()]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=project.environment | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    answer, signature, requirements = json.loads(done.stdout.strip().splitlines()[-1])
    assert "Madrid" in answer
    assert json.loads(signature["inputs"])[0]["name"] == "messages"
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in requirements.split())


def test_a_second_main_job_reuses_everything_and_changes_nothing(project, variants):
    done = project.run()
    assert "Built" not in done.stdout
    assert done.stdout.count("Ready already") == len(variants)
    assert "Every variant has a scorecard" in done.stdout
    assert "Nothing changes: the champion" in done.stdout
    assert "★" in done.stdout


def test_a_dry_run_of_register_writes_nothing(project):
    before = len(project.runs())
    done = project.type(sys.executable, "-m", "steps.register", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Dry run: nothing would change: the champion")
    assert len(project.runs()) == before


def test_a_sweep_has_a_parent_and_a_child_for_each_point(project):
    before = {run["id"] for run in project.runs()}
    text = "Answer briefly, please: $(touch marker) ${oc.env:HOME} 'yes'; `id`"
    project.run(
        "-e", "build", "-P", "mode=pyfunc,onnx", "-P", f"prompting.system={text}", "-P", "generation.temperature=0"
    )
    parent, *children = [run for run in project.runs() if run["id"] not in before]
    assert parent["name"] == "build-sweep"
    assert [child["params"]["mode"] for child in children] == ["pyfunc", "onnx"]
    assert all(child["tags"]["mlflow.parentRunId"] == parent["id"] for child in children)
    assert all(child["params"]["prompting.system"] == text for child in children)
    assert not (project.folder / "marker").exists()
    assert not (project.folder / "multirun.yaml").exists()


def test_a_single_build_is_the_projects_run_and_evaluate_takes_it_by_its_id(project):
    before = {run["id"] for run in project.runs()}
    project.run("-e", "build", "-P", "mode=onnx", "-P", "interface=prompt", "-P", "prompting.system=Be brief.")
    (run,) = [run for run in project.runs() if run["id"] not in before]
    assert run["name"] == "onnx-fp32-prompt-plain"
    assert run["tags"]["mlflow.project.entryPoint"] == "build"
    done = project.run("-e", "evaluate", "-P", f"run_id={run['id']}")
    assert done.stdout.count("Scored ") == 1
    (scored,) = [other for other in project.runs() if other["id"] == run["id"]]
    assert scored["metrics"]["answer_match/mean"] > 0.5
    answer = project.python(
        "import mlflow, json\n"
        f"model = mlflow.pyfunc.load_model([m for m in mlflow.search_logged_models(output_format='list')"
        f" if m.source_run_id == '{run['id']}'][0].model_uri)\n"
        f"raw = '<|system|>You are a stand-up comedian.<|end|><|user|>{SPAIN}<|end|><|assistant|>'\n"
        f"print(json.dumps([model.predict({{'prompt': '{SPAIN}'}}), model.predict({{'prompt': raw}}),"
        f" model.predict([{{'prompt': '{SPAIN}'}}, {{'prompt': '{SPAIN}'}}])]))"
    )
    assert "Madrid" in answer[0]
    assert isinstance(answer[1], str)
    assert answer[2] == [answer[0]] * 2


def test_register_promotes_what_a_limit_leaves(project):
    done = project.run(
        "-e", "register", "-P", "promotion.limits={size/bytes: {max: 1000000}}", "-P", "registered_model=tiny"
    )
    assert re.search(r"Promoted onnx-int4-\S+ to tiny@champion \(version 1\)", done.stdout)


FRUITLESS = {
    "unknown mode": (["build", "mode=onx"], "error: Unknown mode 'onx'. Did you mean 'onnx'?"),
    "nothing to evaluate": (["evaluate"], "error: There is no variant to evaluate in this experiment. Make one with"),
    "nothing to register": (["register"], "error: There is no variant to register in this experiment. Make one with"),
    "unknown run": (["evaluate", "run_id=abc"], "error: run_id must be the run of a READY variant"),
    "broken prompt set": (["evaluate", "prompt_set.path=broken.jsonl"], "error: broken.jsonl: line 1: broken JSON"),
    "int4 on torch": (["main", "precision=int4"], "error: precision=int4 is not offered by mode=pyfunc"),
}


@pytest.mark.parametrize(("words", "sentence"), FRUITLESS.values(), ids=FRUITLESS)
def test_what_cannot_be_done_is_said_in_a_line(step, tmp_path, words, sentence):
    (tmp_path / "broken.jsonl").write_text("{\n")
    name, *arguments = words
    done = step(name, *[argument.replace("broken.jsonl", str(tmp_path / "broken.jsonl")) for argument in arguments])
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(sentence)
    assert "Traceback" not in done.stderr


def test_an_unreachable_server_is_said_within_seconds(step):
    done = step("build", MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:9")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The tracking server http://127.0.0.1:9 does not answer (ConnectionError).")
    assert "secret" not in done.stderr


def test_a_run_that_is_not_in_the_store_is_said_in_a_line(step):
    done = step("build", MLFLOW_RUN_ID="0" * 32)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The run {'0' * 32} that `mlflow run` started is not in sqlite:///")
