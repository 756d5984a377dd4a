"""One engine: a vLLM server for one base. Here is what everybody may read of it, from any thread; `local.py` starts one as a
child and keeps it alive, `remote.py` watches one that somebody else runs.

Either reads its adapters from a folder by itself (`folder.py`), so there is nothing to give it. Does not know vLLM's options
(`launch.py`), who wants it (`fleet.py`) or the gateway.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

from prometheus_client import Gauge

from services.inference.client import EngineClient
from services.inference.launch import covering_rank, model_len
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.interrupt import check, interruptible

log = logging.getLogger(__name__)

READY = Gauge("understudy_engine_ready", "1 while the engine of a base answers", ["base"])
START = Gauge("understudy_engine_start_seconds", "Seconds the engine's latest start took", ["base"])
POLL = 0.2
"""Seconds between two looks at an engine that is starting."""

NOTICED = 10.0
"""Seconds within which whoever looks after an engine knows that it has ended."""


class Engine(ABC):
    """`engine.start()`, then read what is here; ends with `engine.close()`."""

    def __init__(self, base: Base, settings: InferenceSettings) -> None:
        self.base, self.settings = base, settings
        self.rank = covering_rank(settings.max_lora_rank)
        """Of adapters that it shall be able to load."""
        self.max_len = model_len(base, settings)
        self.url: str | None = None
        """Where it answers; None while it does not."""
        self.trouble: str | None = None
        """Why its last start came to nothing, while it is tried on."""
        self.failure: str | None = None
        """Why it does not come up, once that is beyond doubt."""
        self.gave_up: float | None = None
        """When it ceased to be tried, because of that."""
        self.lives = 0
        """How often it has come up."""
        self.since = time.monotonic()
        """When the present start began."""
        self.used = time.monotonic()
        """When somebody last wanted it, waited for it or was sent to it."""
        self.users = 0
        """Items that are being brought to the endpoint on it (`fleet.py`)."""
        self.under_way = 0
        """Requests that it had in hand a second ago."""
        self.turn = threading.Lock()
        """Of whoever measures log-probabilities: one at a time, because each takes much memory."""
        self.wary: set[str] = set()
        """Adapters that were measured on it when it ended, and have to be again: until then no request is sent to it."""
        self.key = ""
        """What its guard wants to see."""
        self.stopping = threading.Event()
        self.retiring = False
        """Whether it may end what it has in hand first, when it is stopping."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"engine-{base.name}", daemon=True)

    @abstractmethod
    def tend(self) -> None:
        """Keep the engine up and say how it is doing, until `stopping`."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it is tended, or not yet gone."""
        return self._thread.is_alive()

    def retire(self) -> None:
        """End it once it has nothing in hand, or after a while; returns at once. `alive` says when it is gone, with its memory."""
        self.retiring = True
        self.stopping.set()

    def close(self, wait: bool = True) -> None:
        """End it, as far as it is ours."""
        self.retiring = False
        self.stopping.set()
        if wait and self._thread.ident:
            self._thread.join()

    def require(self, rank: int) -> None:
        """Be able to load adapters of `rank`; one of ours restarts when it is not."""
        self.rank = max(self.rank, covering_rank(rank))

    def wait_ready(self, timeout: float) -> bool:
        """Whether it answers, waiting at most `timeout` seconds."""
        self.used = time.monotonic()
        if ready := self._ready.wait(timeout):
            self.used = time.monotonic()  # what it dies of now may be this one's doing
        return ready

    def ended(self, life: int) -> bool:
        """Whether what came up as this one of its `lives` is known to be over; waits until that is noticed, if it is."""
        give_up = time.monotonic() + NOTICED
        while self.lives == life and self.url is not None:
            check()
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)
        return True

    def client(self) -> EngineClient:
        """The engine's API; raises `Transient` on use while the engine does not answer."""
        return EngineClient(self.url or "http://127.0.0.1:9", self.key)  # port 9, discard: nobody listens there

    def greet(self, client: EngineClient, url: str) -> str | None:
        """Its first requests, which take seconds and shall be no user's; what is wrong with it, if anything is."""
        if self.base.name not in (models := client.models()):
            return f"The engine at {url} serves {', '.join(sorted(models))}, not `{self.base.name}`. Start it with that --model."
        client.prompt_logprobs(self.base.name, ["ready"])
        return None

    def up(self, url: str) -> None:
        """It answers."""
        took = time.monotonic() - self.since
        START.labels(self.base.name).set(took)
        READY.labels(self.base.name).set(1)
        log.info("engine %s is ready after %.1f s", self.base.name, took)
        self.lives += 1
        self.under_way = 0
        self.url, self.trouble, self.failure = url, None, None
        self._ready.set()

    def down(self) -> None:
        """It does not."""
        self._ready.clear()
        self.url = None
        READY.labels(self.base.name).set(0)

    def _run(self) -> None:
        with interruptible(self.stopping):
            self.tend()
