"""Builds the evaluator from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from services.evaluator.api import router
from services.evaluator.closer import Closer
from services.evaluator.handlers import Evaluator
from services.evaluator.predict import Asker
from services.evaluator.reporter import Reporter
from services.evaluator.reports import Reports
from services.evaluator.settings import EvaluatorSettings
from understudy.belt.folds.histories import Histories
from understudy.service.host import Kernel, Service


def build(settings: EvaluatorSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    work = settings.work("evaluator")
    asker = Asker(f"{settings.gateway.rstrip('/')}/v1", settings.concurrency, kernel.token)
    evaluator = Evaluator(kernel.store, kernel.plans, asker, work)
    histories = Histories()
    kernel.reader.add(histories)
    closer = Closer(kernel.plans, histories, kernel.reader)
    reports = Reports(kernel.store, kernel.plans)
    reporter = Reporter(reports, kernel.plans, kernel.control, kernel.reader, work)
    return Service(
        lanes=(evaluator.lane(), closer.lane(), reporter.lane()),
        router=router(reports, kernel.runs),
    )
