"""A logged model's requirements name every package that its environment gets, not only those that it imports."""

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from steps import command_line
from steps.build import fingerprint
from steps.modes import get_mode, requirements
from tests.conftest import PROJECT
from tests.modes.test_seam import INSTALLED_MODES

LOCK = dict(
    line.split("==") for line in (PROJECT / "requirements.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)
)


def read(lines):
    """Return the pins as name → version."""
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return pins


@pytest.mark.parametrize("name", INSTALLED_MODES)
def test_a_logged_model_pins_all_that_its_packages_depend_on(name):
    pins = read(get_mode(name).whole_requirements)
    optional = get_mode(name).optional_packages
    behind = {Requirement(line).name for package in optional for line in metadata.requires(package) or []}
    assert set(pins) <= {*LOCK, *optional, *behind}
    assert list(pins)[: len(get_mode(name).packages)] == list(get_mode(name).packages)
    for package in pins:
        for line in metadata.requires(package) or []:
            needed = Requirement(line)
            # Without an extra; those that packages ask of each other are in the test below.
            if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and (
                needed.name in LOCK or package in optional
            ):
                assert canonicalize_name(needed.name) in pins, f"{package} needs {line}"


@pytest.mark.parametrize("name", INSTALLED_MODES)
def test_the_pins_are_the_installed_versions_without_a_local_label(name):
    for package, version in read(get_mode(name).whole_requirements).items():
        assert version == metadata.version(package).partition("+")[0]


def test_hubs_client_is_pinned_for_what_reads_checkpoints():
    """Not installed by name: it was another version than the tested one."""
    for name in INSTALLED_MODES:
        assert "huggingface-hub" in read(get_mode(name).whole_requirements)


PACKAGES = {
    "base": ("1.0+cpu", ["Middle[more]>=1", "windows-only; sys_platform == 'win32'", "unlocked"]),
    "middle": ("2.0", ["leaf", "extra-leaf; extra == 'more'", "other-leaf; extra == 'other'"]),
    "leaf": ("3.0", ["base"]),
    "extra-leaf": ("4.0", ["absent"]),
    "other-leaf": ("5.0", None),
    "windows-only": ("6.0", None),
    "unlocked": ("7.0", ["behind-unlocked"]),
    "behind-unlocked": ("8.0", ["unlocked-leaf"]),
    "unlocked-leaf": ("9.0", None),
}


@pytest.fixture
def packages(monkeypatch):
    def version(name):
        if name not in PACKAGES:
            raise metadata.PackageNotFoundError(name)
        return PACKAGES[name][0]

    monkeypatch.setattr(requirements, "version", version)
    monkeypatch.setattr(requirements, "requires", lambda name: PACKAGES[name][1])
    monkeypatch.setattr(requirements, "_locked", lambda: set(PACKAGES) - {"unlocked", "unlocked-leaf"} | {"absent"})


@pytest.mark.parametrize(
    ("direct", "pins"),
    [
        (("other-leaf",), ["other-leaf==5.0"]),
        # A circle, a name in other letters, an extra, a marker of another system, a package that is not installed, and
        # one that the lock does not name.
        (("base",), ["base==1.0", "behind-unlocked==8.0", "extra-leaf==4.0", "leaf==3.0", "middle==2.0"]),
        # What a mode names itself is pinned although the lock does not name it, and so is all that this depends on.
        (("unlocked",), ["unlocked==7.0", "behind-unlocked==8.0", "unlocked-leaf==9.0"]),
        # In the order of the mode, and each once.
        (("middle", "base"), ["middle==2.0", "base==1.0", "behind-unlocked==8.0", "extra-leaf==4.0", "leaf==3.0"]),
    ],
)
def test_extras_markers_circles_and_packages_of_this_machine(packages, direct, pins):
    assert requirements.pin_all(direct) == pins


def test_packages_of_this_machine_do_not_make_another_variant(monkeypatch, checkpoint):
    """With CUDA or on another system more packages are installed, and the variant is the same."""
    config = command_line.compose("build", ["mode=onnx"])
    before = fingerprint(config, checkpoint)
    monkeypatch.setattr(requirements, "_locked", set)
    assert fingerprint(config, checkpoint) == before
