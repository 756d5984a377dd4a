"""Runs one service: its consumer loops and the reader of the folds in threads, the HTTP API in the main thread.

The one place where `python -m services.<name>` comes to life. What differs between services comes in as `build`;
nothing here knows any of them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import uvicorn
from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY

from understudy.belt import scratch
from understudy.belt.bus import Bus, Record
from understudy.belt.bus.connect import connect
from understudy.belt.contracts import Message, RunDeleted
from understudy.belt.delivery import Lane
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.served import Models
from understudy.belt.loop import Loop
from understudy.belt.telemetry import Lag
from understudy.errors import FATAL_EXIT, Fatal, UnderstudyError
from understudy.service.log import configure
from understudy.service.patience import Patience
from understudy.service.token import internal_token
from understudy.service.web import App, add_errors, add_health, guarded
from understudy.settings import Settings
from understudy.store.artifacts import ArtifactStore, FsspecArtifactStore
from understudy.store.plans import Plans
from understudy.terms import Station

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Kernel:
    """What every service is given."""

    bus: Bus
    store: ArtifactStore
    plans: Plans
    control: Control
    runs: Runs
    models: Models
    reader: Reader
    token: str
    """What the services of this installation know each other by."""


@dataclass(frozen=True)
class Service:
    """What a service's `bootstrap.build` returns."""

    lanes: tuple[Lane, ...]
    router: APIRouter = field(default_factory=APIRouter)
    """The service's own HTTP resources; health, readiness and metrics are added."""
    ready: Callable[[], str | None] = lambda: None
    """Why the service cannot work yet, or None when it can."""
    wrap: Callable[[App, bool], App] | None = None
    """Puts an ASGI layer around the app that decides who may come in (the gateway). Called for each listener, with whether that
    one has the internal doors too. None: whoever knows the token may come in."""
    start: Callable[[], None] = lambda: None
    """Called once, before the first message."""
    close: Callable[[], None] = lambda: None
    """Called once, at the end: stop children, flush."""


def kernel(settings: Settings, bus: Bus) -> Kernel:
    """The kernel on a bus."""
    store = FsspecArtifactStore(settings.artifact_url(), settings.cache())
    control = Control()
    runs, models = Runs(control), Models()
    reader = Reader(bus, (control, runs, models))
    return Kernel(bus, store, Plans(store), control, runs, models, reader, internal_token(settings))


def serve(station: Station, settings: S, build: Callable[[S, Kernel], Service]) -> None:
    """Run until SIGTERM or SIGINT; exits with `FATAL_EXIT` after a `Fatal`."""
    configure(station, settings.log_level)
    fatal: list[BaseException] = []
    try:
        bus = connect(settings)
        shared = kernel(settings, bus)
        service = build(settings, shared)
        settled, stop = threading.Event(), threading.Event()
        app = _app(station, service, settled, stop)
        wrap = service.wrap or (lambda app, inside: guarded(app, shared.token, probes=inside))
        server = _server(wrap(app, not settings.internal_port), settings)
        inside = _server(wrap(app, True), settings, inside=True) if settings.internal_port else None
    except UnderstudyError as error:
        sys.exit(_last_words(station, error))

    work = settings.work(station)
    shared.reader.add(_Forgetting(shared, work))
    loops = [
        Loop(
            bus,
            lane,
            shared.control,
            ready=lambda: _until(shared.reader.caught_up, stop),
            member=settings.member,
            stop=stop,
            forget=lambda run: _forget(shared, work, run),
        )
        for lane in service.lanes
    ]
    for loop in loops:
        REGISTRY.register(loop.meter)
    REGISTRY.register(Lag(bus, station, [lane.group for lane in service.lanes]))

    def watched(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except (
                BaseException
            ) as error:  # a thread that dies silently would leave a service that answers but does not work
                fatal.append(error)
                stop.set()
                server.should_exit = True

        return run

    threads = [threading.Thread(target=watched(loop.run), name=f"{loop.lane.group}-loop") for loop in loops]
    reading = watched(lambda: shared.reader.follow(stop))
    threads.append(threading.Thread(target=reading, name=f"{station}-reader", daemon=True))
    threads.append(threading.Thread(target=_keep, args=(shared, stop, settled), name=f"{station}-keep", daemon=True))
    if inside:
        listening = watched(partial(_listen, inside))
        threads.append(threading.Thread(target=listening, name=f"{station}-inside", daemon=True))
    # uvicorn raises the signal that ended it once more, when it has shut down: by its default SIGTERM would end us there.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        service.start()
        for thread in threads:
            thread.start()
        _listen(server)  # handles SIGTERM and SIGINT; returns when told to exit
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        fatal.append(error)
    for word in (signal.SIGINT, signal.SIGTERM):  # we are at it
        signal.signal(word, signal.SIG_IGN)
    stop.set()
    if inside:
        inside.should_exit = True
    for end in (service.close, lambda: _join(threads), bus.close):
        try:
            end()
        except Exception:
            log.exception("did not end well")
    code = _last_words(station, fatal[0]) if fatal else 0
    logging.shutdown()
    os._exit(code)  # a handler that hangs in a call of some library would keep the process for ever


def _server(app: App, settings: Settings, *, inside: bool = False) -> uvicorn.Server:
    """For all, or for insiders. Raises `Fatal` when certificate and key are no pair."""
    tls = None if inside else _tls(settings)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Patience,
            host=(settings.internal_host if inside else "") or settings.host,
            port=settings.internal_port if inside else settings.port,
            lifespan="off" if inside else "on",
            ssl_context_factory=(lambda config, default: tls) if tls else None,
            ws="none",
            proxy_headers=False,  # who asks is who has connected, whatever a header says
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=75,
        )
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """The certificate of the public listener, which speaks TLS 1.2 and 1.3; None where it has none."""
    if not (settings.tls_cert or settings.tls_key):
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        if not (settings.tls_cert and settings.tls_key):
            raise ValueError("one of them is missing")
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")  # else a terminal is asked
    except (OSError, ValueError) as error:
        what = f"UNDERSTUDY_TLS_CERT and UNDERSTUDY_TLS_KEY are no certificate with its key: {error}"
        remedy = "Both name a PEM file that this process can read; the key has no password."
        raise Fatal(what, remedy) from error
    return context


def _listen(server: uvicorn.Server) -> None:
    """Until told to exit. Raises `Fatal` when the port cannot be had."""
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that it cannot listen; why, it has logged
        raise Fatal(f"Cannot listen on {server.config.host}:{server.config.port}", "Is the port in use?") from None


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        if thread.ident:
            thread.join(timeout=10)


def _app(station: Station, service: Service, settled: threading.Event, stop: threading.Event) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        stop.set()

    # The pages that show an API bring scripts from elsewhere.
    app = FastAPI(title=f"understudy {station}", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_errors(app)
    add_health(app, station, ready=lambda: service.ready() or (None if settled.is_set() else "reading the log"))
    app.include_router(service.router)
    return app


def _forget(kernel: Kernel, work: Path, run: str) -> None:
    """Remove the unfinished work on a run that was deleted, unless it was asked for again: then it may be the new one's.

    What a station may just have stored of it stays until the next sweep (`store/sweep.py`): here nobody knows whether the
    run's names are still the old ones.
    """
    if kernel.runs.get(run) is None:
        scratch.forget(work, run)


class _Forgetting:
    """Removes the unfinished work of a run that is deleted while this process lives."""

    topics = ("run-control",)

    def __init__(self, kernel: Kernel, work: Path) -> None:
        self._kernel, self._work = kernel, work
        self._heard: dict[str, int] = {}
        """Run -> offset of what was heard of it: a reader that begins anew reads all again."""

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, RunDeleted) and record.offset > self._heard.get(message.run, -1):
            self._heard[message.run] = record.offset
            if self._kernel.reader.caught_up.is_set():
                _forget(self._kernel, self._work, message.run)


def _keep(kernel: Kernel, stop: threading.Event, settled: threading.Event) -> None:
    """What was read of the past stays: the garbage collector need not look at it again, which would hold up every request
    for as long as tens of thousands of objects take."""
    _until(kernel.reader.caught_up, stop)
    kernel.runs.open()  # looks at every run once
    gc.collect()
    gc.freeze()
    settled.set()


def _until(event: threading.Event, stop: threading.Event) -> None:
    while not event.wait(0.1) and not stop.is_set():
        pass


def _last_words(station: Station, error: BaseException) -> int:
    """Say why the service ends, on the last line of its log, where the supervisor finds it."""
    print(
        f"{station}: {error}" if isinstance(error, UnderstudyError) else f"{station}: {type(error).__name__}: {error}",
        file=sys.stderr,
        flush=True,
    )
    return FATAL_EXIT if isinstance(error, Fatal | UnderstudyError) else 1
