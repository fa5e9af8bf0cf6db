"""How much memory the key-value cache of a batch may take: a share of what is free when the engine is loaded.

Without a limit, 16 rows that are as long as the context of Phi-3-mini take 50 GB. The memory is not reserved: it is
taken as the rows grow.
"""

from pathlib import Path

from . import container

# What grows is copied, so for a moment it takes twice its place.
SHARE = 0.4
MEMINFO = Path("/proc/meminfo")
# The limit and the use of cgroup version 2 and of version 1, which has a very large number if there is no limit.
LIMIT, USE = "memory.max", "memory.current"
OLD_LIMIT, OLD_USE = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"


def cache_tokens(bytes_per_token: int, free_bytes: int | None = None) -> int | None:
    """Return how many tokens a batch may have; None if this system does not say how much memory is free.

    Args:
        bytes_per_token: The keys and values of a token.
        free_bytes: Of the memory where they are; None for the machine's own.
    """
    free = _free() if free_bytes is None else free_bytes
    return None if free is None else max(1, int(SHARE * free) // bytes_per_token)


def _free() -> int | None:
    """Return the bytes that are free, or that the container leaves; what a file's cache takes counts as free."""
    known = [free for free in (_available(), *map(_left, _limits())) if free is not None]
    return max(0, int(min(known))) if known else None


def _available() -> float | None:
    if not MEMINFO.is_file():
        return None
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _limits() -> list[tuple[Path, Path]]:
    """Return the files of each group that may limit the memory, and that say how much of it is used."""
    old = container.GROUPS / OLD_LIMIT, container.GROUPS / OLD_USE
    return [*((folder / LIMIT, folder / USE) for folder in container.group_folders()), old]


def _left(files: tuple[Path, Path]) -> float | None:
    """Return what a group leaves of its limit; None if it has none."""
    limit, use = (container.numbers_in(file) for file in files)
    if not limit or not use:
        return None
    return limit[0] - use[0] + _of_files(files[0].with_name("memory.stat"))


def _of_files(file: Path) -> float:
    """Return the bytes that a group uses for the cache of files, which gives way."""
    lines = file.read_text(encoding="ascii").splitlines() if file.is_file() else []
    return next(
        (float(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "total_inactive_file "))), 0
    )
