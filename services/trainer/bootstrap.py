"""Builds the trainer from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from importlib.util import find_spec

from services.trainer.api import router
from services.trainer.handlers import Trainer
from services.trainer.launcher import ChildLauncher
from services.trainer.settings import TrainerSettings
from services.trainer.tunings import Tunings
from understudy.service.host import Kernel, Service


def build(settings: TrainerSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    trainer = Trainer(
        store=kernel.store,
        plans=kernel.plans,
        launcher=ChildLauncher(threads=settings.threads),
        models=settings.models,
        work=settings.work("trainer"),
        threads=settings.threads,
        has=features(),
    )
    tunings = Tunings(kernel.runs, kernel.plans)
    kernel.reader.add(tunings)
    return Service(lanes=(trainer.lane(),), router=router(tunings))


def features() -> frozenset[str]:
    """What this trainer can do and not every one: keep the best checkpoint; with bitsandbytes, train on a base of four bits."""
    return frozenset({"keep-best", "nf4"} if find_spec("bitsandbytes") else {"keep-best"})
