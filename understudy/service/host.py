"""Runs one service: the consumer loop and the ledger in threads, the HTTP API in the main thread.

The one place where `python -m services.<name>` comes to life. What differs between services comes in as `build`;
nothing here knows any of them."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvicorn
from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY

from understudy.belt.bus import Bus
from understudy.belt.bus.connect import connect
from understudy.belt.contracts import Station
from understudy.belt.folds.runs import Ledger
from understudy.belt.loop import Handlers, Loop
from understudy.errors import FATAL_EXIT, Fatal, UnderstudyError
from understudy.service.log import configure
from understudy.service.telemetry import Lag
from understudy.service.web import add_errors, add_health
from understudy.settings import Settings
from understudy.store.artifacts import ArtifactStore, FsspecArtifactStore

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Kernel:
    """What every service is given."""

    bus: Bus
    store: ArtifactStore
    ledger: Ledger


@dataclass(frozen=True)
class Service:
    """What a service's `bootstrap.build` returns."""

    handlers: Handlers
    router: APIRouter = field(default_factory=APIRouter)
    """The service's own HTTP resources; health, readiness and metrics are added."""
    ready: Callable[[], str | None] = lambda: None
    """Why the service cannot work yet, or None when it can."""
    wrap: Callable[[Any], Any] = lambda app: app
    """Puts an ASGI layer around the app (the gateway's hot path)."""
    start: Callable[[], None] = lambda: None
    """Called once, before the first message."""
    close: Callable[[], None] = lambda: None
    """Called once, at the end: stop children, flush."""


def serve(station: Station, settings: S, build: Callable[[S, Kernel], Service]) -> None:
    """Run until SIGTERM or SIGINT; exits with `FATAL_EXIT` after a `Fatal`."""
    configure(station, settings.log_level)
    fatal: list[BaseException] = []
    try:
        bus = connect(settings)
        ledger = Ledger(bus)
        kernel = Kernel(bus=bus, store=FsspecArtifactStore(settings.artifact_url(), settings.cache()), ledger=ledger)
        service = build(settings, kernel)
    except UnderstudyError as error:
        sys.exit(_last_words(station, error))

    loop = Loop(bus, station, service.handlers, member=settings.member)
    REGISTRY.register(loop.meter)
    REGISTRY.register(Lag(bus, station))
    server = uvicorn.Server(
        uvicorn.Config(
            service.wrap(_app(station, service, loop, ledger)),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=75,
        )
    )

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except (
                BaseException
            ) as error:  # a thread that dies silently would leave a service that answers but does not work
                fatal.append(error)
                server.should_exit = True

        return run

    threads = [
        threading.Thread(target=guarded(loop.run), name=f"{station}-loop"),
        threading.Thread(target=guarded(lambda: ledger.follow(loop.stop)), name=f"{station}-ledger", daemon=True),
    ]
    try:
        service.start()
        for thread in threads:
            thread.start()
        server.run()  # handles SIGTERM and SIGINT; returns when told to exit
    except UnderstudyError as error:
        fatal.append(error)
    except KeyboardInterrupt:  # uvicorn raises the signal again once it has shut down
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.stop.set()
        service.close()
        for thread in threads:
            if thread.ident:
                thread.join(timeout=10)
        bus.close()
    if fatal:
        sys.exit(_last_words(station, fatal[0]))


def _app(station: Station, service: Service, loop: Loop, ledger: Ledger) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        loop.stop.set()

    app = FastAPI(title=f"understudy {station}", lifespan=lifespan)
    add_errors(app)
    add_health(app, station, ready=lambda: service.ready() or (None if ledger.caught_up else "reading the log"))
    app.include_router(service.router)
    return app


def _last_words(station: Station, error: BaseException) -> int:
    """Say why the service ends, on the last line of its log, where the supervisor finds it."""
    print(
        f"{station}: {error}" if isinstance(error, UnderstudyError) else f"{station}: {type(error).__name__}: {error}",
        file=sys.stderr,
        flush=True,
    )
    return FATAL_EXIT if isinstance(error, Fatal | UnderstudyError) else 1
