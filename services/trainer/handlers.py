"""What the trainer does with a message: passes the base on, trains everything else in a child process.

Decides what the end of a child means: wrong input, too little memory, a full disk, an interruption. Does not touch torch (`train.py` does).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, Data, Job, JobFolder, Step
from services.trainer.launcher import Launcher
from services.trainer.preflight import check_base, check_datasets
from understudy.bases import resolve
from understudy.belt.contracts import Message, ModelTrained, Progress, TrainingRequested
from understudy.belt.loop import Handlers
from understudy.belt.scratch import everywhere, take_up
from understudy.errors import Fatal, Invalid, Transient
from understudy.recipe import BASE
from understudy.store.artifacts import ArtifactStore

POLL_SECONDS, SAY_SOMETHING_SECONDS = 0.2, 1.0
INTERRUPTIONS = 20
"""Times in a row that a killed child is started again while no step comes out of it."""


@dataclass(frozen=True)
class Trainer:
    """The trainer's handlers and what they need."""

    store: ArtifactStore
    launcher: Launcher
    models: Path
    """Folder of bundled base models."""
    work: Path
    """Folder for unfinished work."""
    threads: int
    sleep: Callable[[float], object] = time.sleep

    def train(self, request: TrainingRequested) -> Iterator[Message]:
        """Fine-tune one variant; yields Progress while it runs and ModelTrained at the end.

        Resumes from the last checkpoint of an earlier delivery, and gives the same bytes as if nothing had happened.
        """
        if request.variant == BASE:
            yield ModelTrained.following(request, adapter=None)
            return
        key = f"runs/{request.run}/adapters/{request.variant}"
        artifact = self.store.find(key)
        if artifact is None:
            folder = JobFolder(take_up(self.work, request.run, request.variant))
            job = folder.prepare(self.job(request))
            yield from self._run(job, folder)
            artifact = self.store.put(key, folder.adapter)
            for path in everywhere(self.work, request.run, request.variant):
                JobFolder(path).clear()
        yield ModelTrained.following(request, adapter=artifact)

    def job(self, request: TrainingRequested) -> Job:
        """The job that `request` asks for; raises `Invalid` when it cannot be done, before anything heavy starts."""
        recipe = request.recipe
        variants = recipe.trained()
        if request.variant not in variants:
            raise Invalid(
                f"Run {request.run} has no variant `{request.variant}`", f"Its recipe names {', '.join(variants)}."
            )
        stages = variants[request.variant].stages()
        budget = stages if recipe.training.budget == "epochs" else next(iter(variants.values())).stages()
        named = sorted({name for stage in (*stages, *budget) for name in stage})
        if missing := [name for name in named if name not in request.datasets]:
            raise Invalid(
                f"Dataset `{missing[0]}` of variant `{request.variant}` was not made", "See why in the log of datagen."
            )
        base = resolve(recipe.base, self.models)
        check_base(base, recipe.training.quantize)
        datasets = {
            name: Data(folder=self.store.fetch(request.datasets[name]), sha256=request.datasets[name].sha256)
            for name in named
        }
        check_datasets({name: data.folder for name, data in datasets.items()}, request.variant)
        return Job(
            run=request.run,
            variant=request.variant,
            base=base,
            datasets=datasets,
            stages=stages,
            budget_stages=budget,
            training=recipe.training,
            seed=recipe.seed,
            threads=self.threads,
            micro_batch=recipe.training.batch_size,
        )

    def _run(self, job: Job, folder: JobFolder) -> Iterator[Progress]:
        """Children one after another until the adapter is there; raises what the last one's end means."""
        interruptions = 0
        while not folder.adapter.is_dir():
            oom_kills = _oom_kills()
            code, steps = yield from self._watch(job, folder)
            if code == EXIT_MEMORY or (code == -9 and _oom_kills() > oom_kills):
                job = _smaller(job)
                folder.restart(job)
            elif code == -9 and interruptions < INTERRUPTIONS:
                interruptions = 0 if steps else interruptions + 1
            elif code != 0 or not folder.adapter.is_dir():
                raise _failure(code, job, folder)

    def _watch(self, job: Job, folder: JobFolder) -> Generator[Progress, None, tuple[int, int]]:
        """One child from start to end, which comes early when this generator is closed; returns (exit code, steps it made)."""
        folder.progress.unlink(missing_ok=True)  # its last line may be torn
        seen = 0
        child = self.launcher.launch(folder)
        try:
            said, latest, steps = 0.0, None, 0
            while True:
                code = child.poll()
                fresh, seen = folder.steps(seen)
                steps += len(fresh)
                latest = fresh[-1] if fresh else latest
                if (
                    fresh or time.monotonic() - said >= SAY_SOMETHING_SECONDS
                ):  # silence would hold up a stop of the service
                    yield _progress(job, latest)
                    said = time.monotonic()
                if code is not None:
                    return code, steps
                self.sleep(POLL_SECONDS)
        finally:
            child.stop()

    def handlers(self) -> Handlers:
        return {TrainingRequested: self.train}


def _progress(job: Job, step: Step | None) -> Progress:
    """What people see; before the first step the child loads and tokenises."""
    if step is None:
        return Progress(run=job.run, station="trainer", variant=job.variant, step="preparing")
    figures = {"loss": step.loss, "tokens_per_second": step.tokens_per_second, "eta_seconds": step.eta_seconds}
    return Progress(
        run=job.run,
        station="trainer",
        variant=job.variant,
        step="training",
        done=step.step,
        total=step.total,
        figures=figures,
    )


def _smaller(job: Job) -> Job:
    """`job` with a smaller micro-batch; raises `Invalid` when there is none."""
    if smaller := job.smaller():
        return smaller
    raise Invalid(
        f"Variant `{job.variant}` does not fit into memory, even one example at a time",
        "Set `training.quantize: nf4`, lower `training.max_length`, or take a smaller base.",
    )


def _failure(code: int, job: Job, folder: JobFolder) -> Invalid | Transient | Fatal:
    """The error that a child's exit code stands for."""
    if code == EXIT_INVALID and folder.error.is_file():
        return Invalid(json.loads(folder.error.read_text(encoding="utf-8"))["message"])
    if code == EXIT_DISK:
        return Fatal(
            f"The disk that holds {folder.path} is full", "Free some space there and run the same command: it resumes."
        )
    last = folder.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:] if folder.log.is_file() else []
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return Transient(f"Training of `{job.variant}` {how}; its last words in {folder.log}: {' | '.join(last)[-2000:]}")


def _oom_kills() -> int:
    """Processes that the kernel killed for want of memory since boot; tells such a SIGKILL from anybody else's."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
