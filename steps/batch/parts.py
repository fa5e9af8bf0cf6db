"""The parts of an unfinished output, in the folder OUTPUT.parts, so that a killed job goes on where it stopped.

A part is written under another name and renamed when it is whole. job.json says what the parts were made from: the
digest of the input and the model. A champion that changes in between does not change the model of the job.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steps.errors import StepError

JOB = "job.json"


@dataclass(frozen=True)
class Job:
    """What the parts of an output depend on."""

    input_sha256: str
    question: str
    added: tuple[str, str]
    part_rows: int
    registered_model: str
    version: str
    model_id: str


@dataclass(frozen=True)
class Parts:
    """The folder of an output's parts."""

    output: Path

    @property
    def folder(self) -> Path:
        """Return the folder of the parts."""
        return self.output.with_name(f"{self.output.name}.parts")

    def job(self) -> Job | None:
        """Return what the parts that are there were made from; None if there are none."""
        with contextlib.suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads((self.folder / JOB).read_text(encoding="utf-8"))
            return Job(**content | {"added": tuple(content["added"])})
        return None

    def begin(self, job: Job) -> None:
        """Write down what the parts are made from, before the first."""
        unfinished = self.folder / f"{JOB}.unfinished"
        unfinished.write_text(json.dumps(asdict(job)), encoding="utf-8")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(self.folder / JOB)

    def files(self) -> list[Path]:
        """Return the whole parts, in order."""
        return sorted(self.folder.glob(f"[0-9]*{self.output.suffix}"))

    def file(self, number: int, errors: int) -> Path:
        """Return the name of a part, which says how many of its rows have an error."""
        return self.folder / f"{number:09d}-{errors}{self.output.suffix}"

    def errors(self) -> int:
        """Return how many rows of all whole parts have an error."""
        return sum(int(part.stem.partition("-")[2]) for part in self.files())

    def remove(self) -> None:
        """Delete the parts; the output has them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other jobs with the same output out during the block."""
        from filelock import FileLock, Timeout

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StepError(
                f"Another process is writing {self.output}. Wait for it to end, or give another output."
            ) from None
        try:
            self.folder.mkdir(exist_ok=True)
            yield
        finally:
            # While it is held: afterwards it may be another process's.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def check_same(begun: Job, job: Job, parts: Parts) -> None:
    """Raise StepError if the parts that are there were made from something else. The model may have changed since."""
    differing = [
        name
        for name in ("input_sha256", "question", "added", "part_rows", "registered_model")
        if getattr(begun, name) != getattr(job, name)
    ]
    if differing:
        raise StepError(
            f"{parts.folder} was begun with another {differing[0].removesuffix('_sha256')}. Delete the folder to begin "
            "again, or give another output."
        )
