"""An engine that somebody else runs, in a container or on another machine: watched, never started or ended.

It reads the same folder of adapters, so one that restarted needs nothing. Its rank is what it was started with.
"""

from __future__ import annotations

import time

from services.inference.client import EngineClient
from services.inference.engine import POLL, Engine
from understudy.errors import UnderstudyError
from understudy.interrupt import Interrupted
from understudy.service.token import internal_token

WATCH = 2.0
"""Seconds between two looks at one that answers."""


class Remote(Engine):
    """The engine at `settings.engine_url`."""

    def tend(self) -> None:
        url = self.settings.engine_url.rstrip("/")
        if self.settings.internal_token:  # only one that the operator set: it has to know the same
            self.key = internal_token(self.settings)
        with EngineClient(url, self.key) as client:
            while not self.stopping.wait(WATCH if self.url else POLL):
                try:
                    self._look(client, url)
                except Interrupted:
                    break
                except UnderstudyError as error:
                    self.trouble = str(error)
        self.down()

    def _look(self, client: EngineClient, url: str) -> None:
        if not client.healthy():
            if self.url:
                self.since = time.monotonic()
            self.down()
            if time.monotonic() - self.since > self.settings.engine_timeout:
                self.failure = f"The engine of `{self.base.name}` at {url} has not answered for {self.settings.engine_timeout:.0f} s"
        elif self.url is None:
            self.failure = self.greet(client, url)
            if self.failure is None:
                self.up(url)
