"""Publishes what informs people only, from a thread of its own: work goes on although nobody hears of it.

Of several words about the same thing the latest goes out, so a bus that is away makes no queue.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from understudy.belt.bus import Bus
from understudy.belt.contracts import Progress
from understudy.errors import UnderstudyError

log = logging.getLogger(__name__)


class Teller:
    """`teller.tell(progress)` returns at once; ends with `teller.close()`, which waits for the last words a moment."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._latest: dict[str, Progress] = {}
        self._said = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._publish, name="teller", daemon=True)
        self._thread.start()

    def tell(self, progress: Progress) -> None:
        """Publish it soon; figures that are no numbers are left out."""
        figures = {name: figure for name, figure in progress.figures.items() if math.isfinite(figure)}
        with self._said:
            self._latest[progress.key] = progress.model_copy(update={"at": time.time(), "figures": figures})
            self._said.notify()

    def close(self, patience: float = 1.0) -> None:
        """Say what is left to be said, within so many seconds."""
        with self._said:
            self._closed = True
            self._said.notify()
        self._thread.join(patience)

    def _publish(self) -> None:
        while True:
            with self._said:
                self._said.wait_for(lambda: self._latest or self._closed)
                if not self._latest:
                    return
                words = list(self._latest.values())
                self._latest.clear()
            try:
                self._bus.publish(*words)
            except UnderstudyError as error:
                log.warning("progress was not published: %s", error)
