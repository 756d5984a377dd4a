"""One engine: a vLLM server for one base, kept alive, with its adapters.

A thread starts it as a child, waits until it is healthy, gives it its adapters, and does so again whenever it dies; after
several deaths in a row `failure` says why, and it goes on trying with longer pauses until it is closed. With an engine that runs
elsewhere the same thread starts nothing and watches instead. Does not know vLLM's options (`launch.py`), which adapters
are wanted (`fleet.py`) or the gateway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import Gauge

from services.inference.adapters import LOOK_AGAIN, Adapters
from services.inference.client import EngineClient
from services.inference.launch import Process, covering_rank, log_file, model_len, spawn
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.embedded.ports import free_ports
from understudy.errors import UnderstudyError
from understudy.interrupt import Interrupted, interruptible
from understudy.service.log import last_words
from understudy.terms import Artifact

log = logging.getLogger(__name__)

READY = Gauge("understudy_engine_ready", "1 while the engine of a base answers", ["base"])
START = Gauge("understudy_engine_start_seconds", "Seconds the engine's latest start took", ["base"])

FAILED_STARTS = 2
"""So many starts in a row that came to nothing make a failure,"""
QUICK_DEATHS, QUICK = 3, 30.0
"""and so many lives in a row, each shorter than so many seconds of service."""
WATCH, POLL = 2.0, 0.2
"""Seconds between two looks at an engine elsewhere, and at one of ours."""


class Engine:
    """`engine.start()`, then read `url` and `adapters.serving` from any thread; ends with `engine.close()`."""

    def __init__(
        self,
        base: Base,
        settings: InferenceSettings,
        wanted: Callable[[], Mapping[str, Artifact]],
        gone: Callable[[str], bool],
        folder: Callable[[Artifact], Path],
        launch: Callable[[Base, InferenceSettings, int, int], Process] | None = None,
        pause: float = 0.5,
    ) -> None:
        self.base = base
        self.rank = covering_rank(settings.max_lora_rank)
        self.url: str | None = None
        """Where it answers; None while it does not."""
        self.adapters = Adapters(base.name, wanted, gone, folder, self.wake)
        self.failure: str | None = None
        """Why it does not come up, after several attempts."""
        self.turn = threading.Lock()
        """Of whoever measures log-probabilities: one at a time, because each takes much memory."""
        self.max_len = model_len(base, settings)
        self._settings = settings
        self._launch = launch or spawn
        self._pause = pause
        self._stop, self._wake, self._ready = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"engine-{base.name}", daemon=True)
        self.since = time.monotonic()
        """When the present start began."""
        self.asked = time.monotonic()
        """When somebody last wanted it or waited for it."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self, wait: bool = True) -> None:
        """End the engine with all its processes."""
        self._stop.set()
        self._wake.set()
        if wait and self._thread.ident:
            self._thread.join()

    def require(self, rank: int) -> None:
        """Be able to load adapters of `rank`; restarts the engine when it is not."""
        if covering_rank(rank) > self.rank:
            self.rank = covering_rank(rank)
            self._wake.set()

    def wake(self) -> None:
        """Look again at what adapters are wanted."""
        self._wake.set()

    def wait_ready(self, timeout: float) -> bool:
        """Whether it answers, waiting at most `timeout` seconds."""
        self.asked = time.monotonic()
        return self._ready.wait(timeout)

    def client(self) -> EngineClient:
        """The engine's API; raises `Transient` on use while the engine does not answer."""
        return EngineClient(self.url or "http://127.0.0.1:9")  # port 9, discard: nobody listens there

    def _supervise(self) -> None:
        with interruptible(self._stop):
            failed_starts = deaths = 0
            while not self._stop.is_set():
                rank, (why, served) = self.rank, self._live()
                if self._stop.is_set() or self.rank > rank:
                    continue
                deaths = 1 if served > QUICK else deaths + 1
                failed_starts = 0 if served else failed_starts + 1
                log.error("engine %s: %s", self.base.name, why)
                if failed_starts >= FAILED_STARTS or deaths >= QUICK_DEATHS:
                    self.failure = why
                self._stop.wait(min(30.0, self._pause * 2 ** min(deaths - 1, 10)))

    def _live(self) -> tuple[str, float]:
        """One life of the engine: why it ended, and for how many seconds it served."""
        self.since, served_from, rank = time.monotonic(), 0.0, self.rank
        process: Process | None = None
        try:
            (port,) = free_ports(1)
            process = self._launch(self.base, self._settings, port, rank)
            url = self._settings.engine_url.rstrip("/") or f"http://127.0.0.1:{port}"
            why = self._until_healthy(url, process)
            if not why:
                served_from = time.monotonic()
                why = self._serve(url, process, rank)
        except Interrupted:
            why = "stopped"
        except Exception as error:
            if not isinstance(error, UnderstudyError):
                log.exception("engine %s", self.base.name)
            why = str(error)
        finally:
            self._ready.clear()
            self.url = None
            self.adapters.forget()
            READY.labels(self.base.name).set(0)
            if process:
                process.stop()
        return why, time.monotonic() - served_from if served_from else 0.0

    def _until_healthy(self, url: str, process: Process) -> str | None:
        """Wait for the engine's first sign of life; why it gave none, else None."""
        with EngineClient(url) as client:
            while not self._stop.wait(POLL):
                if process.poll() is not None:
                    return f"The engine of `{self.base.name}` ended while it started. {self._last_words()}"
                if client.healthy():
                    if self.base.name not in client.models():
                        return (
                            f"The engine at {url} serves {', '.join(sorted(client.models()))}, not `{self.base.name}`."
                            " Start it with that --served-model-name."
                        )
                    client.prompt_logprobs(self.base.name, ["ready"])  # the first request takes seconds: not a user's
                    return None
                if time.monotonic() - self.since > self._settings.engine_timeout:
                    return (
                        f"The engine of `{self.base.name}` was not healthy after {self._settings.engine_timeout:.0f} s."
                        f" {self._last_words()}"
                    )
        return "stopped"

    def _serve(self, url: str, process: Process, rank: int) -> str:
        """Look after the adapters until the engine ends; why it did."""
        watched = bool(self._settings.engine_url)
        with EngineClient(url) as client:
            while not self._stop.is_set():
                self._wake.clear()
                if self.rank > rank and not watched:
                    return "restarts for larger adapters"
                self.adapters.reconcile(client)
                if self.url is None:
                    START.labels(self.base.name).set(time.monotonic() - self.since)
                    READY.labels(self.base.name).set(1)
                    log.info("engine %s is ready after %.1f s", self.base.name, time.monotonic() - self.since)
                    self.url, self.failure = url, None
                    self._ready.set()
                looked = time.monotonic()
                while not self._wake.wait(WATCH if watched else POLL):
                    if process.poll() is not None:
                        return f"The engine of `{self.base.name}` ended. {self._last_words()}"
                    if watched:  # it may have restarted and forgotten its adapters
                        break
                    if self.adapters.unsettled and time.monotonic() - looked > LOOK_AGAIN:
                        break
        return "stopped"

    def _last_words(self) -> str:
        path = log_file(self._settings, self.base)
        said = last_words(path, lines=3, telling=("Error", "error:"))
        return f"Its last words in {path}: {said}" if said else ""
