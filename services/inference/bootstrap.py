"""Builds inference from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from services.inference.api import router
from services.inference.fleet import Fleet
from services.inference.gateway import Gateway
from services.inference.handlers import Inference
from services.inference.settings import InferenceSettings
from understudy.service.host import Kernel, Service


def build(settings: InferenceSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    fleet = Fleet(settings, kernel.ledger, kernel.store)
    families = {
        "/v1/files": ("datagen", settings.datagen_url),
        "/v1/runs": ("datagen", settings.datagen_url),
        "/v1/fine_tuning": ("trainer", settings.trainer_url),
        "/v1/evals": ("evaluator", settings.evaluator_url),
        "/v1/reports": ("evaluator", settings.evaluator_url),
    }

    def start() -> None:
        if settings.base:
            fleet.ensure(settings.base, settings.max_lora_rank)

    return Service(
        handlers=Inference(fleet, settings.gate_tolerance).handlers(),
        router=router(fleet),
        wrap=lambda app: Gateway(app, fleet, families, max_body=settings.max_body, hold_seconds=settings.hold_seconds),
        start=start,
        close=fleet.close,
    )
