"""What the trainer does with a message: trains one item in a child process, and keeps what came of it.

Decides what the end of a child means: wrong input, too little memory, a full disk, an interruption. Closed in the middle,
it ends the child and leaves the sealed checkpoints for the next delivery. Does not touch torch (`train.py` does).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, Data, Job, JobFolder, Step
from services.trainer.launcher import Launcher
from services.trainer.preflight import check_base, check_datasets, check_validation
from understudy.bases import as_planned
from understudy.belt.contracts import Message, Progress, ServingRequested, TrainingRequested
from understudy.belt.delivery import Lane
from understudy.belt.scratch import forget, take_up
from understudy.errors import Fatal, Invalid, Transient, UnderstudyError
from understudy.interrupt import check
from understudy.plan import Item, Plan
from understudy.service.log import last_words
from understudy.service.machine import memory_kills
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.store.plans import Plans

POLL_SECONDS, SAY_SOMETHING_SECONDS = 0.2, 1.0
GRACE_SECONDS = 0.8
"""Between asking a child to end and killing it; it may take as long again until it is gone."""
INTERRUPTIONS = 20
"""Times in a row that a killed child is started again while it gets no further than one before it."""
MOST_LOG_BYTES = 1 << 20
"""Of a training's log that are kept in the store."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainer:
    """The lane `trainer`."""

    store: ArtifactStore
    plans: Plans
    launcher: Launcher
    models: Path
    """Folder of bundled base models."""
    work: Path
    """Folder for unfinished work."""
    threads: int
    has: frozenset[str] = frozenset()
    """Features that this trainer has and not every one."""
    sleep: Callable[[float], object] = time.sleep

    def lane(self) -> Lane:
        return Lane("trainer", {TrainingRequested: self.train}, has=self.has)

    def train(self, request: TrainingRequested) -> Iterator[Message]:
        """Fine-tune one item; yields Progress while it runs and ServingRequested at the end.

        Resumes from the last checkpoint of an earlier delivery, and gives the same bytes as if nothing had happened.
        """
        plan = self.plans.get(request.plan)
        item = plan.item(request.item)
        artifact = self.store.find(keys.adapter(request.run, item.name))
        if artifact is None:
            job = self.job(request, plan, item)
            folder = JobFolder(take_up(self.work, request.run, item.name))
            job = folder.prepare(job)
            try:
                yield from self._run(job, folder, request)
            except UnderstudyError:
                self._keep_log(request, folder)
                raise
            artifact = self.store.put(keys.adapter(request.run, item.name), folder.adapter)
            self._keep_log(request, folder)
            forget(self.work, request.run, item.name)
        yield ServingRequested.following(request, adapter=artifact, needs=item.needs.get("inference", ()))

    def job(self, request: TrainingRequested, plan: Plan, item: Item) -> Job:
        """The job that `request` asks for; raises `Invalid` when it cannot be done, before anything heavy starts."""
        if item.training is None:
            raise Invalid(f"Item `{item.name}` of run {request.run} has no training in its plan")
        base = as_planned(plan.base_of(item), self.models)
        check_base(base, item.training.quantize)
        made = self.plans.datasets(request.datasets) if request.datasets else {}
        named = sorted({name for stage in (*item.stages, *item.budget_stages) for name in stage})
        if missing := [name for name in named if name not in made]:
            raise Invalid(
                f"Dataset `{missing[0]}`, on which `{item.name}` trains, was not made", "See why in the log of datagen."
            )
        datasets = {name: Data(folder=self.store.fetch(made[name]), sha256=made[name].sha256) for name in named}
        check_datasets({name: data.folder for name, data in datasets.items()}, item.name)
        if item.training.keep == "best":
            check_validation({name: datasets[name].folder for stage in item.stages for name in stage}, item.name)
        return Job(
            run=request.run,
            item=item.name,
            base=base,
            datasets=datasets,
            stages=item.stages,
            budget_stages=item.budget_stages,
            training=item.training,
            seed=item.seed,
            # Not by the item's name, which tells how many bases and seeds the plan has beside it.
            shuffle=f"{item.seed}/{item.variant or item.name}",
            threads=self.threads,
            micro_batch=item.training.batch_size,
        )

    def _run(self, job: Job, folder: JobFolder, request: TrainingRequested) -> Iterator[Progress]:
        """Children one after another until the adapter is there; raises what the last one's end means."""
        interruptions = furthest = 0
        while not folder.adapter.is_dir():
            kills = memory_kills()
            code, step = yield from self._watch(folder, request)
            if code == EXIT_MEMORY or (code == -9 and memory_kills() > kills):
                job, furthest = _smaller(job), 0
                folder.restart(job)
            elif code == -9 and interruptions < INTERRUPTIONS:
                interruptions = 0 if step > furthest else interruptions + 1
                furthest = max(furthest, step)
            elif code != 0 or not folder.adapter.is_dir():
                raise _failure(code, job, folder)

    def _watch(self, folder: JobFolder, request: TrainingRequested) -> Generator[Progress, None, tuple[int, int]]:
        """One child from start to end, which comes early when this generator is closed; returns (exit code, last step)."""
        folder.progress.unlink(missing_ok=True)  # its last line may be torn
        child = self.launcher.launch(folder)
        try:
            seen, said = 0, 0.0
            latest: Step | None = None
            while True:
                code = child.poll()
                fresh, seen = folder.steps(seen)
                latest = fresh[-1] if fresh else latest
                if fresh or time.monotonic() - said >= SAY_SOMETHING_SECONDS:
                    yield _progress(request, latest)
                    said = time.monotonic()
                if code is not None:
                    return code, latest.step if latest else 0
                check()
                self.sleep(POLL_SECONDS)
        finally:
            child.stop(GRACE_SECONDS)

    def _keep_log(self, request: TrainingRequested, folder: JobFolder) -> None:
        """Store the end of the log beside those of earlier ends. It is no part of the result, so nothing fails with it."""
        every = (keys.training_log(request.run, request.item, number) for number in count(1))
        try:
            if folder.log.is_file():
                with self.store.draft() as draft:
                    (draft / folder.log.name).write_bytes(folder.log_end(MOST_LOG_BYTES))
                    self.store.put(next(key for key in every if self.store.find(key) is None), draft)
        except (UnderstudyError, OSError) as error:
            log.warning("the log of a training was not stored: %s", error)


def _progress(request: TrainingRequested, step: Step | None) -> Progress:
    """What people see; before the first step the child loads and tokenises."""
    progress = Progress.answering(request, station="trainer", step="preparing")
    if step is None:
        return progress
    figures = {"loss": step.loss, "tokens_per_second": step.tokens_per_second, "eta_seconds": step.eta_seconds}
    if step.validation_loss is not None:
        figures["validation_loss"] = step.validation_loss
    update = {"step": "training", "done": step.step, "total": step.total, "figures": figures, "mark": step.step}
    return progress.model_copy(update=update)


def _smaller(job: Job) -> Job:
    """`job` with a smaller micro-batch; raises `Invalid` when there is none."""
    if smaller := job.smaller():
        return smaller
    raise Invalid(
        f"`{job.item}` does not fit into memory, even one example at a time",
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
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    said = last_words(folder.log, lines=5)[-600:]  # a reason is cut at its end, where these say most
    return Transient(f"Training of `{job.item}` {how}; its last words in {folder.log}: {said}")
