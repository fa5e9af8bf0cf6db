"""The files in which Linux says what a container may use: those of the process's own group, and of all around it."""

from pathlib import Path

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def group_folders() -> list[Path]:
    """Return the folders of version 2 that may hold limits, innermost first."""
    own = OWN_GROUP.read_text(encoding="utf-8").splitlines() if OWN_GROUP.is_file() else []
    group = GROUPS
    for line in own:
        if line.startswith("0::/"):
            group = GROUPS / line[len("0::/") :]
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(GROUPS)]


def numbers_in(file: Path) -> list[float] | None:
    """Return the numbers in a file; None if it is not there or holds something else."""
    try:
        return [float(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return None
