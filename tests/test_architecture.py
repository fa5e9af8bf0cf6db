"""The shape of the code: what may import what, and what only a mode's or an interface's own file may know."""

import ast
from itertools import pairwise

import pytest

from steps.interfaces import INTERFACES
from steps.modes import MODES
from tests.conftest import PROJECT

STEPS = PROJECT / "steps"
# From the top down: a room imports from rooms below it.
LAYERS = (
    ("benchmark",),
    ("benchmarking",),
    ("build", "evaluate", "register", "main", "score", "serve"),
    ("command_line",),
    ("batch", "service"),
    ("promotion",),
    ("evaluation",),
    ("store",),
    ("modes",),
    ("checkpoints", "interfaces"),
    ("wrappers",),
    ("config", "digests", "errors", "interrupts", "output", "redaction"),
)
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
# The only files that may hold a mode's or an interface's name as a value.
MODE_FILES = {"steps/modes/__init__.py", *(f"{module.replace('.', '/')}.py" for module in MODES.values())}
INTERFACE_FILES = {
    "steps/interfaces/__init__.py",
    "steps/config/schema.py",  # the default
    *(f"{module.replace('.', '/')}.py" for module in INTERFACES.values()),
}


def _files():
    return sorted(STEPS.rglob("*.py"))


def _room(file):
    return file.relative_to(STEPS).parts[0].removesuffix(".py")


def _imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and node.module.startswith("steps"):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "steps" else [node.module]
            yield from (name.split(".")[1] for name in names)


def test_every_room_has_its_layer():
    assert {_room(file) for file in _files()} - {"__init__"} == set(LAYER)


def test_imports_go_down_only():
    upward = [
        f"{file.relative_to(PROJECT)} imports {target}"
        for file in _files()
        for target in _imports(file)
        if _room(file) != target and LAYER.get(_room(file), 0) > LAYER[target]
    ]
    assert upward == []


def test_rooms_of_one_layer_do_not_import_each_other_in_a_circle():
    arrows = {(_room(file), target) for file in _files() for target in _imports(file)} - {("main", "build")}
    assert [pair for pair in arrows if pair[0] != pair[1] and pair[::-1] in arrows] == []


def _compared_names(file, names):
    """Yield where a file decides by one of the names: compares with it, matches it, or has a dictionary by it."""
    for node in ast.walk(ast.parse(file.read_text())):
        parts = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        for part in (inner for outer in parts for inner in ast.walk(outer)):
            if isinstance(part, ast.Constant) and part.value in names:
                yield f"{file.relative_to(PROJECT)}:{part.lineno} {part.value}"


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PROJECT)))
def test_only_a_modes_own_file_knows_its_name(file):
    # MLflow has a flavour, a package and a module called transformers.
    names = set(MODES) - {"transformers"} if _room(file) in ("store", "wrappers") else set(MODES)
    if str(file.relative_to(PROJECT)) not in MODE_FILES:
        assert list(_compared_names(file, names)) == []


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PROJECT)))
def test_only_an_interfaces_own_file_knows_its_name(file):
    if str(file.relative_to(PROJECT)) in INTERFACE_FILES or _room(file) == "wrappers":
        return
    decided = [place for place in _compared_names(file, set(INTERFACES)) if not _is_row_field(place)]
    assert decided == []


def _is_row_field(place):
    """Rows of a prompt set have a field that is called prompt too."""
    return place.startswith("steps/evaluation/prompt_set/")


def test_functions_are_short():
    long = [
        f"{file.relative_to(PROJECT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for file in _files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 - _docstring_lines(node) > 40
    ]
    assert long == []


def _docstring_lines(node):
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno - first.lineno + 1 if is_docstring else 0


def test_files_are_short():
    assert [str(file) for file in _files() if len(file.read_text().splitlines()) > 300] == []


def test_layers_are_in_order():
    assert all(upper != lower for upper, lower in pairwise(LAYERS))


def _module_imports(file):
    """Yield the modules of the project that a file imports, also those for types only."""
    modules = {".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in _files()}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            yield from names & modules


def test_no_metric_is_loaded_by_what_the_ruler_measures():
    """The ruler decides which scorecards are out of date, so it must not depend on them."""
    reached, left = set(), ["steps.evaluation.ruler"]
    while left:
        file = PROJECT / f"{left.pop().replace('.', '/')}.py"
        left += [name for name in _module_imports(file) if name not in reached]
        reached |= set(_module_imports(file))
    assert not {"steps.evaluation.scores", "steps.evaluation.scorecard", "steps.evaluation.ruler"} & reached
