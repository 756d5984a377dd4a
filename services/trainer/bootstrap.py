"""Builds the trainer from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from services.trainer.api import router
from services.trainer.handlers import Trainer
from services.trainer.launcher import ChildLauncher
from services.trainer.settings import TrainerSettings
from understudy.service.host import Kernel, Service


def build(settings: TrainerSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    trainer = Trainer(
        store=kernel.store,
        launcher=ChildLauncher(threads=settings.threads),
        models=settings.models,
        work=settings.work("trainer"),
        threads=settings.threads,
    )
    return Service(handlers=trainer.handlers(), router=router(kernel.ledger))
