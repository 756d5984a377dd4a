"""A training job: the folder that the service and its child share, and nothing else.

    <work>/<run>/<item>/
        job.json          `Job`: everything the child needs
        progress.jsonl    one `Step` per optimizer step, appended by the child
        error.json        why the input is wrong, written by the child that exits with EXIT_INVALID
        train.log         the child's output
        checkpoints/      unfinished work; a checkpoint counts only with its seal (`train.py`)
        adapter/          the result, renamed into place when complete

Does not start processes (`launcher.py`), train (`train.py`), decide about failures (`handlers.py`) or list what the API
calls jobs (`tunings.py`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from understudy.bases import Base
from understudy.plan import Stages
from understudy.recipe import Training

EXIT_INVALID, EXIT_MEMORY, EXIT_DISK = 2, 3, 4
"""How the child ends when the input is wrong (see error.json), memory ran out, or the disk is full."""


class Data(BaseModel):
    """One dataset of a job."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    """Local folder of the dataset artifact."""
    sha256: str
    """Digest of that artifact."""


class Job(BaseModel):
    """What to train, on what, from what."""

    model_config = ConfigDict(frozen=True)

    format: Literal["understudy.job.v1"] = "understudy.job.v1"
    run: str
    item: str
    base: Base
    datasets: dict[str, Data]
    """All datasets that `stages` and `budget_stages` name."""
    stages: Stages
    budget_stages: Stages
    """Stages whose data defines the token budget."""
    training: Training
    seed: int
    shuffle: str
    """What the order of the examples follows from, besides the data."""
    threads: int
    micro_batch: int
    """Examples per forward pass; divides `training.batch_size`."""

    def smaller(self) -> Job | None:
        """The same job with at most half the micro-batch and the same effective batch; None when it is 1 already."""
        if self.micro_batch == 1:
            return None
        size = next(n for n in range(self.micro_batch // 2, 0, -1) if self.training.batch_size % n == 0)
        return self.model_copy(update={"micro_batch": size})


class Step(BaseModel):
    """One line of progress.jsonl."""

    step: int
    total: int
    loss: float
    tokens_per_second: float
    """Real tokens of prompt and answer, without padding, since this process began to train."""
    eta_seconds: float
    validation_loss: float | None = None
    """The latest, if there was any."""


class JobFolder:
    """The paths of a job, and the writing of job.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "job.json"
        self.progress = path / "progress.jsonl"
        self.error = path / "error.json"
        self.log = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.adapter = path / "adapter"

    def prepare(self, job: Job) -> Job:
        """Write job.json, or take up the unfinished work that is there; returns the job as it stands.

        Work on another job (other data, another plan, other settings) is thrown away. A micro-batch that was halved stays so.
        """
        if found := self._read():
            if found.model_copy(update={"micro_batch": job.micro_batch}) == job:
                return found
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(job)
        return job

    def write(self, job: Job) -> None:
        """Replace job.json in one step."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(job.model_dump_json(indent=1), encoding="utf-8")
        partial.rename(self.file)

    def restart(self, job: Job) -> None:
        """Begin again as `job`: what was computed with another micro-batch would make the result depend on when memory ran out."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.write(job)

    def log_end(self, most_bytes: int) -> bytes:
        """The last whole lines of the log, at most so many bytes; raises OSError."""
        with self.log.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(start)
            said = file.read(most_bytes)
        return (said.partition(b"\n")[2] or said) if start else said

    def steps(self, offset: int) -> tuple[list[Step], int]:
        """Whole lines of progress.jsonl from byte `offset`, and the offset behind them."""
        try:
            with self.progress.open("rb") as file:
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return [], offset
        return [Step.model_validate_json(line) for line in whole.splitlines()], offset + len(whole) + len(newline)

    def _read(self) -> Job | None:
        try:
            return Job.model_validate_json(self.file.read_bytes())
        except (FileNotFoundError, ValueError):  # a job.json of another version is other work
            return None
