"""Builds inference from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from services.inference.api import router
from services.inference.fleet import Fleet
from services.inference.gateway import Gateway
from services.inference.handlers import Inference
from services.inference.keeper import Keeper
from services.inference.local import Local
from services.inference.remote import Remote
from services.inference.settings import InferenceSettings
from understudy.bases import resolve
from understudy.service.doors import passed_on
from understudy.service.host import Kernel, Service


def build(settings: InferenceSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    caught_up = kernel.reader.caught_up.is_set
    engine = Remote if settings.engine_url else Local
    fleet = Fleet(settings, kernel.models, caught_up, kernel.store, engine)
    keeper = Keeper(fleet, kernel.runs, kernel.plans, caught_up)
    kernel.reader.add(keeper)
    urls = {"datagen": settings.datagen_url, "trainer": settings.trainer_url, "evaluator": settings.evaluator_url}
    families = {family: (station, urls[station]) for family, station in passed_on().items()}

    def start() -> None:
        keeper.start()
        if settings.base:
            fleet.keep(resolve(settings.base, settings.models), settings.max_lora_rank)

    def close() -> None:
        keeper.close()
        fleet.close()

    return Service(
        lanes=(Inference(fleet, kernel.plans, settings.gate_tolerance).lane(),),
        router=router(fleet, kernel.store),
        wrap=lambda app, inside: Gateway(
            app, fleet, families, kernel.token, max_body=settings.max_body, hold_seconds=settings.hold_seconds
        ),
        start=start,
        close=close,
    )
