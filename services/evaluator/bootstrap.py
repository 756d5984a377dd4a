"""Builds the evaluator from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from services.evaluator.api import router
from services.evaluator.handlers import Evaluator
from services.evaluator.predict import Asker
from services.evaluator.settings import EvaluatorSettings
from understudy.service.host import Kernel, Service


def build(settings: EvaluatorSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    evaluator = Evaluator(
        store=kernel.store,
        asker=Asker(base_url=f"{settings.gateway.rstrip('/')}/v1", concurrency=settings.concurrency),
        work=settings.work("evaluator"),
    )
    return Service(handlers=evaluator.handlers(), router=router(kernel.store))
