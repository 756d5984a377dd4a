"""Builds datagen: the only place that knows which collaborators it has."""

from __future__ import annotations

from services.datagen.api import router
from services.datagen.build import Builder
from services.datagen.files import Files
from services.datagen.handlers import Datagen
from services.datagen.pools import Pools
from services.datagen.runs import Desk
from services.datagen.servable import Engine, Servable
from services.datagen.settings import DatagenSettings
from services.datagen.sources import Bounds, Sources
from services.datagen.tasks.task import Models
from understudy.llm.providers import Providers
from understudy.service.host import Kernel, Service


def build(settings: DatagenSettings, kernel: Kernel) -> Service:
    """The service on the kernel."""
    sources = Sources(kernel.store, Bounds(settings.max_source_bytes, settings.max_field_bytes))
    pools = Pools(sources, max_text_chars=settings.max_text_chars, max_labels=settings.max_labels)
    models = Models(Providers(settings.providers), settings.llm_tries)
    builder = Builder(settings.work("datagen"), models)
    datagen = Datagen(kernel.store, kernel.plans, pools, builder)
    files = Files(kernel.store, max_bytes=settings.max_upload_bytes)
    servable = Servable(
        models=settings.models,
        language_models=models,
        bases=tuple(each.strip() for each in settings.bases.split(",") if each.strip()),
        base=settings.base,
        engine=Engine(settings.max_lora_rank, settings.max_model_len) if settings.engine_url else None,
    )
    return Service(
        lanes=(datagen.lane(),),
        router=router(files, Desk(kernel, pools, servable, settings.window)),
    )
