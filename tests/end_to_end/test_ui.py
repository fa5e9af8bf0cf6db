"""What users see of an evaluation in MLflow's UI, with a real browser and a real server.

The main job builds three of its variants and asks 16 questions. Set SCREENSHOTS to a folder to save a PNG of every view
that is tested, with all that the main job builds: those of docs/ui.md are made by
`SCREENSHOTS=docs/pictures pytest -n 0 -m "" tests/end_to_end/test_ui.py`.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest

from steps import command_line
from steps.evaluate import evaluate
from steps.register import register
from tests.conftest import PROJECT
from tests.mlflow_server import running

SCREENSHOTS = os.environ.get("SCREENSHOTS")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# MLflow opens a panel for its assistant on the first visit.
WITHOUT_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
EXPERIMENT, EXPERIMENT_ID = "phi3", "1"
BRIEF = "pyfunc-fp32-chat-brief"
VARIANTS = ("onnx-fp32-chat", "onnx-int4-chat", BRIEF)
# Columns to toggle: the first three are shown at first and are hidden, the others are shown.
COLUMNS = (
    *("Dataset", "Source", "Models"),
    *("answer_match/mean", "exact_match/mean", "speed/tokens_per_second", "memory/peak_mb", "size/bytes"),
)
# JavaScript: whether the page shows a picture of this width and height.
SHOWS_PICTURE = """size => [...document.images].some(
    image => image.naturalWidth === size[0] && image.naturalHeight === size[1]
)"""
# JavaScript: whether the page has each of the expected lines, and a repeated one as often.
SHOWS_LINES = """expected => {
    const lines = document.body.innerText.split("\\n");
    const count = (all, line) => all.filter(other => other === line).length;
    return expected.every(line => count(lines, line) >= count(expected, line));
}"""
ROWS = 16
SECONDS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    """Return the browser's program. On Debian it is installed if the tests run as root, as in a container."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if program := shutil.which(name):
            return program
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("there is no Chromium, and it can be installed only by root with apt-get")
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        if reason := failure_of(["apt-get", *arguments]):
            pytest.skip(f"there is no Chromium, and apt-get {arguments[0]} failed: {reason}")
    return shutil.which("chromium")


def failure_of(command: Sequence[str], seconds: float = 600) -> str | None:
    """Run a command and return why it failed; None if it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"it did not end within {seconds} seconds"
    return (done.stderr.strip()[-200:] or f"exit code {done.returncode}") if done.returncode else None


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["sleep", "60"], "it did not end within 2 seconds"),
        (["sh", "missing.sh"], r"missing\.sh"),
        (["false"], "exit code 1"),
    ],
    ids=["hangs", "prints an error", "prints nothing"],
)
def test_a_failed_installation_is_a_reason_to_skip(command, reason):
    assert re.search(reason, failure_of(command, 2))


def test_a_successful_installation_has_no_failure():
    assert failure_of(["true"]) is None


def questions(folder, name, first, count):
    """Write some of the project's questions to a file; return the override that chooses it."""
    lines = (PROJECT / "conf" / "prompt_set" / "facts.jsonl").read_text().splitlines()
    (folder / f"{name}.jsonl").write_text("\n".join(lines[first :: len(lines) // count][:count]))
    return f"prompt_set.path={folder}/{name}.jsonl"


@pytest.fixture(scope="module")
def store(tmp_path_factory, checkpoint, empty_store):
    """Return the folder of a store after a main job."""
    folder = tmp_path_factory.mktemp("ui")
    shutil.copy(empty_store, folder / "mlflow.db")
    few = [f"variants={','.join(VARIANTS)}", questions(folder, "facts", 0, ROWS), "evaluate.speed_seconds=0.2"]
    words = ["promotion.smoke=false", *([] if SCREENSHOTS else few)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        main = [sys.executable, "-m", "steps.main", *words]
        done = subprocess.run(main, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def runs_of(store):
    """Return the runs of a store's variants by name."""
    runs = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db").search_runs([EXPERIMENT_ID])
    return {run.info.run_name: run for run in runs if "phi3.fingerprint" in run.data.tags}


@pytest.fixture(scope="module")
def second_set(store):
    """Score the variants on another prompt set as well, promote by it, and roll back."""
    chosen = questions(store, "more", 3, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
        patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        patch.chdir(store)
        evaluate(command_line.compose("evaluate", [chosen, "evaluate.speed=false", "evaluate.traces=false"]))
        strict = ["promotion.metric=exact_match", "promotion.margin=0", "promotion.smoke=false"]
        register(command_line.compose("register", [chosen, *strict]))
        register(command_line.compose("register", [chosen, "action=rollback", "promotion.smoke=false"]))


@pytest.fixture(scope="module")
def server(store):
    """Return the address of the UI of a server on the store."""
    with running(store) as server:
        yield f"{server.address}/#"


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """Return a page of a browser with a new profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            headless=True,
            args=FLAGS,
            viewport={"width": 1400, "height": 800},
        )
        context.set_default_timeout(SECONDS * 1000)
        context.add_init_script(WITHOUT_ASSISTANT)
        yield context.pages[0]
        context.close()


def take_screenshot(page, name):
    """Save a picture of the page if SCREENSHOTS is set."""
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def close_tip(page):
    """Close what MLflow explains on the first visit, a moment after the page is there; only a picture needs that."""
    from playwright.sync_api import TimeoutError as TooLate

    if SCREENSHOTS:
        with contextlib.suppress(TooLate):
            page.get_by_role("button", name="Got it").click(timeout=10_000)


def open_runs(page, server, store, mode="TABLE"):
    """Open the runs of VARIANTS and wait until they are there. Sorted by time they are folded below the main job."""
    ids = ", ".join(f"'{runs_of(store)[name].info.run_id}'" for name in VARIANTS)
    page.goto("about:blank")
    chosen, order = quote(f"attributes.run_id IN ({ids})"), quote("metrics.`answer_match/mean`")
    view = f"compareRunsMode={mode}&searchFilter={chosen}&orderByKey={order}"
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/runs?{view}")
    page.get_by_text("matching runs").wait_for()
    page.locator("[role=row]").filter(has_text=BRIEF).first.wait_for()


def test_the_runs_table_shows_scores_and_sorts_by_them(page, server, store):
    from playwright.sync_api import expect

    open_runs(page, server, store)
    page.get_by_test_id("column-selection-dropdown").first.click()
    for column in COLUMNS:
        page.get_by_placeholder("Search columns").fill(column)
        page.get_by_test_id("column-selector-tree").get_by_text(column, exact=True).first.click()
    page.keyboard.press("Escape")
    # Only this variant answers with the bare word, so it is the first in one order and the last in the other.
    brief = page.locator(".ag-row").filter(has_text=BRIEF).first
    for order, place in (("orderByAsc=false", 0), ("orderByAsc=true", len(VARIANTS) - 1)):
        page.locator(".ag-header-cell").filter(has_text="exact_match/mean").click()
        page.wait_for_url(re.compile(f"exact_match.*{order}"))
        expect(brief).to_have_attribute("row-index", str(place), timeout=SECONDS * 1000)
    take_screenshot(page, "runs")


def test_selected_runs_are_compared_with_their_scores(page, server, store):
    open_runs(page, server, store)
    for name in VARIANTS:
        row = page.locator(".ag-row").filter(has=page.get_by_text(name, exact=True)).first
        row.locator("input[type=checkbox]").first.check(force=True)
    page.get_by_test_id("runs-compare-button").click()
    page.get_by_text(f"Comparing {len(VARIANTS)} Runs").wait_for()
    page.get_by_text("answer_match/ci_low").first.wait_for()
    text = page.inner_text("body")
    for name in ("answer_match/mean", "contract/passed", "prompting", "precision", *VARIANTS):
        assert name in text
    take_screenshot(page, "comparison")


def test_the_table_view_shows_the_answers_side_by_side(page, server, store):
    runs = runs_of(store)
    uris = [runs[name].info.artifact_uri for name in VARIANTS]
    tables = [mlflow.artifacts.load_dict(f"{uri}/eval_results_table.json") for uri in uris]
    answers = [table["data"][1][table["columns"].index("outputs")] for table in tables]
    page.set_viewport_size({"width": 1900, "height": 800})
    open_runs(page, server, store, "ARTIFACT")
    page.get_by_test_id("dropdown-tables").click()
    tables = page.get_by_test_id("dropdown-tables-option")
    tables.filter(has_text="eval_results_table.json").click()
    page.keyboard.press("Escape")
    page.wait_for_function(SHOWS_LINES, arg=answers)
    text = page.inner_text("body")
    assert all(answer in text for answer in answers)
    take_screenshot(page, "answers")


def test_the_charts_draw_the_scores_of_every_variant(page, server, store):
    from playwright.sync_api import expect

    scores = scores_of(store, "answer_match/mean")
    means = sorted(f"{scores[name]:.2f}" for name in VARIANTS)
    page.set_viewport_size({"width": 1400, "height": 800})
    open_runs(page, server, store, "CHART")
    title = page.get_by_title("answer_match/mean", exact=True)
    chart = page.locator("div").filter(has=title).filter(has=page.locator(".barlayer")).last
    expect(chart.locator(".bartext")).to_have_count(len(means), timeout=SECONDS * 1000)
    assert sorted(chart.locator(".bartext").all_text_contents()) == means
    take_screenshot(page, "charts")


def test_the_evaluation_run_has_a_leaderboard_and_pictures(page, server, store):
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    (run,) = client.search_runs([EXPERIMENT_ID], "attributes.run_name = 'evaluate-facts'")
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/runs/{run.info.run_id}/artifacts/leaderboard.json")
    page.get_by_text("speed/tokens_per_second").first.wait_for()
    assert all(name in page.inner_text("body") for name in VARIANTS)
    sizes = []
    for picture in ("quality_against_speed", "scores_by_tag"):
        page.get_by_text(f"{picture}.png").first.click()
        size = size_of(f"{run.info.artifact_uri}/{picture}.png")
        assert size not in sizes
        sizes.append(size)
        page.wait_for_function(SHOWS_PICTURE, arg=size)
        take_screenshot(page, picture)


def size_of(address):
    """Return the width and height of a logged PNG. The page's pictures differ in their size."""
    head = Path(mlflow.artifacts.download_artifacts(address)).read_bytes()[16:24]
    return [int.from_bytes(head[:4]), int.from_bytes(head[4:])]


def last_question(store):
    """Return the question of the newest trace: it is on the first page."""
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    (trace,) = client.search_traces(locations=[EXPERIMENT_ID], max_results=1)
    return trace.info.request_preview


def test_traces_show_rows_with_scores_and_the_prompts_are_listed(page, server, store):
    page.set_viewport_size({"width": 1900, "height": 800})
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/traces")
    page.get_by_text(last_question(store)).first.wait_for()
    page.get_by_text("answer_match").first.wait_for()
    close_tip(page)
    take_screenshot(page, "traces")
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/prompts")
    page.get_by_text("phi3.prompting.brief").first.wait_for()
    text = page.inner_text("body")
    assert all(name in text for name in ("phi3.prompting.brief", "phi3.prompting.plain"))
    take_screenshot(page, "prompts")


def test_the_evaluation_runs_show_every_question_with_its_scores(page, server, store):
    page.goto("about:blank")
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/evaluation-runs")
    row = page.get_by_role("row").filter(has_text="evaluate-facts").first
    row.wait_for()
    assert re.search(r"evaluate-facts\s.*\sfacts\b", row.inner_text(), re.S)
    page.get_by_text("evaluate-facts").first.click()
    page.get_by_text(last_question(store)).first.wait_for()
    page.get_by_text("answer_match").first.wait_for()
    take_screenshot(page, "evaluation_runs")


def open_view(page, server, name):
    """Open the view that a step has prepared for a prompt set, and wait for its rows."""
    page.goto("about:blank")
    page.goto(f"{server}/experiments/{EXPERIMENT_ID}/runs?workflowType=machine_learning&viewStateShareKey={name}")
    page.locator(".ag-row").filter(has_text=BRIEF).first.wait_for()


def shown_order(page):
    """Return the names of the variants in the order of the table."""
    rows = page.locator(".ag-row").filter(has_text=re.compile("-(chat|prompt)")).all()
    texts = {int(row.get_attribute("row-index")): row.inner_text() for row in rows}
    names = [re.search(r"\S+-(chat|prompt)\S*", texts[place]) for place in sorted(texts)]
    return [name.group() for name in names if name]


def scores_of(store, metric):
    """Return a metric of each variant's run."""
    return {name: run.data.metrics[metric] for name, run in runs_of(store).items()}


def test_the_prepared_view_shows_the_winner_and_sorts_by_score(page, server, store):
    page.set_viewport_size({"width": 1500, "height": 700})
    open_view(page, server, "facts")
    page.get_by_text("★ champion of phi3").first.wait_for()
    scores = scores_of(store, "facts/answer_match")
    order = [scores[name] for name in shown_order(page)]
    assert len(order) == len(scores)
    assert order == sorted(order, reverse=True)
    heads = page.locator(".ag-header").inner_text()
    for column in ("phi3.standing", "facts/answer_match", "facts/tokens_per_second", "size/bytes"):
        assert column in heads
    take_screenshot(page, "view")
    page.goto(f"{page.url}&compareRunsMode=CHART")
    page.get_by_text("Quality, speed and size on facts").first.wait_for()
    page.locator(".scatterlayer .point").first.wait_for(state="attached")
    take_screenshot(page, "view_charts")


def test_each_run_describes_itself(page, server, store):
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    expected = {
        "main": ("main", "best first"),
        "onnx-int4-chat": ("variant", "Scored on facts"),
        "evaluate-facts": ("evaluation", "best first"),
        "register-phi3": ("promotion", "Nothing changes|Done"),
    }
    for run in reversed(client.search_runs([EXPERIMENT_ID])):
        if picture := expected.pop(run.info.run_name, None):
            page.goto(f"{server}/experiments/{EXPERIMENT_ID}/runs/{run.info.run_id}")
            page.get_by_text(re.compile(picture[1])).first.wait_for()
            take_screenshot(page, picture[0])
    assert expected == {}


def test_the_registered_model_says_how_to_load_and_serve_its_champion(page, server):
    page.goto(f"{server}/models/phi3")
    page.get_by_text("mlflow models serve -m models:/phi3@champion").first.wait_for()
    assert page.get_by_text('mlflow.pyfunc.load_model("models:/phi3@champion")').count() >= 1
    take_screenshot(page, "registered_model")
    page.goto(f"{server}/models/phi3/versions/1")
    page.get_by_text("there was no champion").first.wait_for()
    assert re.search(r"@\s*champion", page.inner_text("body"))
    take_screenshot(page, "champion_version")


def test_a_second_prompt_set_overwrites_nothing(page, server, store, request):
    before = scores_of(store, "facts/answer_match")
    request.getfixturevalue("second_set")
    assert scores_of(store, "facts/answer_match") == before
    assert scores_of(store, "more/answer_match") != before
    for name in ("facts", "more"):
        open_view(page, server, name)
        assert f"{name}/answer_match" in page.locator(".ag-header").inner_text()
        take_screenshot(page, f"view_{name}_after_rollback")
    page.get_by_text("rolled back from").first.wait_for()
    page.goto(f"{server}/models/phi3")
    page.get_by_text("rolled back from version").first.wait_for()
    take_screenshot(page, "registered_model_after_rollback")
