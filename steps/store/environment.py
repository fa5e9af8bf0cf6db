"""Describe the environment that a variant is built or evaluated in."""

import contextlib
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("mlflow", "transformers", "torch", "onnxruntime-genai", "onnxruntime", "tokenizers", "hydra-core")


def package_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and every package that can change an answer."""
    return {package: version(package) for package in PACKAGES} | {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """Return the project's commit, with "-dirty" if files have changed since; None outside a repository."""
    with contextlib.suppress(Exception):
        from git import Repo

        repository = Repo(Path(__file__).resolve().parent, search_parent_directories=True)
        return repository.head.commit.hexsha + ("-dirty" if repository.is_dirty() else "")
    return None
