"""Builds inference from its settings; the only place that chooses collaborators."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware

from services.inference import keys as key_routes
from services.inference import login
from services.inference.admission import Admission
from services.inference.api import router
from services.inference.fleet import Fleet
from services.inference.gateway import Gateway
from services.inference.handlers import Inference
from services.inference.keeper import Keeper
from services.inference.local import Local
from services.inference.remote import Remote
from services.inference.sessions import Sessions
from services.inference.settings import InferenceSettings
from services.inference.usage import Usage
from understudy.bases import resolve
from understudy.belt.folds.keys import Keys
from understudy.belt.folds.reader import Reader
from understudy.errors import Fatal
from understudy.service.doors import passed_on
from understudy.service.host import Kernel, Service
from understudy.service.published import strangers_come
from understudy.service.web import App


def build(settings: InferenceSettings, kernel: Kernel) -> Service:
    """The service as `host.serve` runs it."""
    caught_up = kernel.reader.caught_up.is_set
    engine = Remote if settings.engine_url else Local
    fleet = Fleet(settings, kernel.models, caught_up, kernel.store, engine)
    keeper = Keeper(fleet, kernel.runs, kernel.plans, caught_up)
    kernel.reader.add(keeper)
    urls = {"datagen": settings.datagen_url, "trainer": settings.trainer_url, "evaluator": settings.evaluator_url}
    families = {family: (station, urls[station]) for family, station in passed_on().items()}

    keys, usage = Keys(), Usage()
    sessions = Sessions(kernel.token, keys)
    kernel.reader.add(keys)
    required = strangers_come(settings)
    if required and not _somebody_has_a_key(kernel):
        raise Fatal(
            "The gateway can be reached from other machines, and nobody has a key yet",
            "`understudy keys create --first` makes one; with compose: "
            "`docker compose run --rm --entrypoint understudy inference keys create --first`.",
        )

    routes = router(fleet, kernel.store, usage)
    routes.include_router(key_routes.router(kernel.bus, keys, caught_up))
    routes.include_router(login.router(keys, sessions))

    def wrap(app: App, inside: bool) -> App:
        """A gateway of its own for each listener, because each has an event loop of its own."""
        admission = Admission(
            keys,
            sessions,
            kernel.token if inside else None,  # from outside it opens nothing
            required=required,
            hosts=_listed(settings.hosts),
            origins=_listed(settings.cors),
            alone=inside and bool(settings.internal_port),
            inside=inside and (bool(settings.internal_port) or not required),
        )
        gateway: App = Gateway(
            app,
            fleet,
            families,
            kernel.token,
            admission,
            usage,
            max_body=settings.max_body,
            hold_seconds=settings.hold_seconds,
        )
        if not (origins := _listed(settings.cors)):
            return gateway
        return CORSMiddleware(gateway, allow_origins=sorted(origins), allow_methods=["*"], allow_headers=["*"])

    def start() -> None:
        keeper.start()
        if settings.base:
            fleet.keep(resolve(settings.base, settings.models), settings.max_lora_rank)

    def close() -> None:
        usage.tell()
        keeper.close()
        fleet.close()

    return Service(
        lanes=(Inference(fleet, kernel.plans, settings.gate_tolerance).lane(),),
        router=routes,
        wrap=wrap,
        start=start,
        close=close,
    )


def _somebody_has_a_key(kernel: Kernel) -> bool:
    """What the bus says now; the fold that serves requests is read later."""
    keys = Keys()
    Reader(kernel.bus, (keys,)).load()
    return keys.any_alive()


def _listed(setting: str) -> frozenset[str]:
    return frozenset(each.strip().lower() for each in setting.split(",") if each.strip())
