"""An engine that is our child: started, waited for, and started again whenever it dies or must be able to do more.

What it died of decides how long it is tried before it is given up, and what waits for it fails: of its own doing, with the same
last words each time (weights that cannot be read, a model that vLLM lacks), for a minute; killed from outside, which may be
chance, an operator or the kernel short of memory, for five; and so long if it comes up each time and dies before anybody asked it
for anything. One that died of what it was asked for has not failed: whoever asked counts that (`handlers.py`).
"""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable
from http import HTTPStatus
from itertools import count

from services.inference.client import EngineClient
from services.inference.engine import POLL, Engine
from services.inference.launch import Process, log_file, spawn
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.errors import UnderstudyError
from understudy.interrupt import Interrupted
from understudy.service.log import last_words, rotate
from understudy.service.ports import free_ports
from understudy.service.token import internal_token

log = logging.getLogger(__name__)

PATIENCE, LONGER = 60.0, 5
"""Seconds of nothing but deaths of one cause that make a failure, and so many times of that when it was killed or had come up."""
STAYED = 10.0
"""Seconds that it has to serve before it counts as well."""
DRAIN, ARRIVED = 60.0, 0.5
"""Seconds that one which is ended may take for what it has in hand, and within which what was sent to it has come."""
CORE_GONE, CORE_SAID = (
    re.compile("Engine core initialization failed|EngineDeadError"),
    re.compile("EngineCore.* ERROR "),
)
"""What vLLM's server says when the core that it started has ended, and what that says when it ends by itself."""
LONGEST_PAUSE = 30.0
EVERY = 5
"""Looks at the process for one at what it says."""


class Deaths:
    """Deaths in a row, by cause."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen: defaultdict[str, list[float]] = defaultdict(list)
        """Cause -> when the first life began that ended of it, and when each of these ended."""

    def add(self, began: float, ended: float, served: float, used: bool, killed: bool, why: str) -> tuple[bool, int]:
        """One more, all times in seconds: whether they make a failure, and how many there were of its own doing."""
        if served >= STAYED:
            self._seen.clear()
            began = ended
        elif served and used:
            return False, 0
        # Numbers are times, process ids and addresses.
        seen = self._seen["killed" if killed else re.sub(r"0x[0-9a-f]+|[0-9]+", "#", why)]
        seen += [ended] if seen else [began, ended]
        patience = self._patience * (LONGER if killed or served else 1)
        return len(seen) > 2 and ended - seen[0] > patience, 0 if killed else len(seen) - 1


class Local(Engine):
    """A vLLM server that we start."""

    def __init__(
        self,
        base: Base,
        settings: InferenceSettings,
        launch: Callable[[Base, InferenceSettings, int, int], Process] = spawn,
        pause: float = 0.5,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(base, settings)
        self._launch, self._pause, self._deaths = launch, pause, Deaths(patience)
        self._log, self._log_from = log_file(settings, base), 0
        """Where it writes, and from which byte on in its present life."""
        self.key = internal_token(settings)

    def tend(self) -> None:
        while not self.stopping.is_set():
            self.since, rank = time.monotonic(), self.rank
            why, killed, served = self._live(rank)
            if self.stopping.is_set() or self.rank > rank:
                continue
            log.error("engine %s: %s", self.base.name, why)
            now = time.monotonic()
            hopeless, own = self._deaths.add(self.since, now, served, self.used > now - served, killed, why)
            self.trouble = why
            if hopeless:
                self.failure, self.gave_up = why, now
                return
            self.stopping.wait(min(LONGEST_PAUSE, self._pause * 2 ** min(max(0, own - 1), 10)))

    def _live(self, rank: int) -> tuple[str, bool, float]:
        """One life: why it ended, whether it was killed from outside, and for how many seconds it served."""
        process: Process | None = None
        killed, served_from = False, 0.0
        try:
            rotate(self._log)
            self._log_from = self._log.stat().st_size if self._log.exists() else 0
            (port,) = free_ports(1)
            process = self._launch(self.base, self.settings, port, rank)
            url = f"http://127.0.0.1:{port}"
            with EngineClient(url, self.key) as client:
                why = self._until_healthy(client, url, process)
                if why is None:
                    self.up(url)
                    served_from = time.monotonic()
                    self._until_over(client, process, rank)
                    why = f"The engine of `{self.base.name}` ended. {self._last_words()}"
                killed = self._was_killed(client, process)
        except Interrupted:
            why = "stopped"
        except Exception as error:
            if not isinstance(error, UnderstudyError):
                log.exception("engine %s", self.base.name)
            why = str(error)
        finally:
            self.down()
            if process:
                process.stop()
        return why, killed, time.monotonic() - served_from if served_from else 0.0

    def _until_healthy(self, client: EngineClient, url: str, process: Process) -> str | None:
        """Wait for its first sign of life; why it gave none, else None."""
        while not self.stopping.wait(POLL):
            if process.poll() is not None:
                return f"The engine of `{self.base.name}` ended while it started. {self._last_words()}"
            if client.healthy():
                return self.greet(client, url)
            if time.monotonic() - self.since > self.settings.engine_timeout:
                return (
                    f"The engine of `{self.base.name}` was not healthy after {self.settings.engine_timeout:.0f} s."
                    f" {self._last_words()}"
                )
        return "stopped"

    def _until_over(self, client: EngineClient, process: Process, rank: int) -> None:
        """While it serves, and need not be able to do more."""
        for look in count(1):
            if look % EVERY == 0:
                status, under_way = client.pulse()
                self.under_way = self.under_way if under_way is None else under_way
                if status == HTTPStatus.SERVICE_UNAVAILABLE:
                    return
            if process.poll() is not None or self.rank > rank:
                return
            if self.stopping.wait(POLL):
                self._drain(client, process)
                return

    def _drain(self, client: EngineClient, process: Process) -> None:
        """Let it end what it has in hand, if it may; nobody is sent to it any more."""
        self.down()
        until = time.monotonic() + DRAIN
        time.sleep(ARRIVED if self.retiring else 0)
        while self.retiring and process.poll() is None and client.pulse()[1]:
            if time.monotonic() > until:
                log.warning("engine %s: ended with requests in hand, after %.0f s", self.base.name, DRAIN)
                return
            time.sleep(POLL)

    def _was_killed(self, client: EngineClient, process: Process) -> bool:
        """Also when it was the core, which dies without a word then: the server ends by itself, with the same words each time."""
        said = self._log.read_bytes()[self._log_from :].decode(errors="replace")
        core = CORE_GONE.search(said) or client.lost_its_core()
        return (process.poll() or 0) < 0 or bool(core and not CORE_SAID.search(said))

    def _last_words(self) -> str:
        said = last_words(self._log, lines=3, telling=("Error", "error:"), since=self._log_from)
        return f"Its last words in {self._log}: {said}" if said else ""
