"""The one reader of a process: follows the bus and feeds the folds.

    reader = Reader(bus, [control, runs])
    reader.follow(stop)                       # in a thread, for ever
    reader.caught_up.wait()                   # everything that was there at the start has been read
    Reader(bus, [runs]).load()                # a look without a service

Keeps nothing itself but how far it is. What a newer version wrote is passed over: whoever shall act on it will say so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from understudy.belt.bus import Bus, Record
from understudy.belt.contracts import decode
from understudy.belt.folds import Fold
from understudy.belt.topics import TABLE
from understudy.errors import Invalid, Transient, Unsupported
from understudy.interrupt import check

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds before reading again from a bus that did not answer."""
PATIENCE = 2.0
"""Seconds in which what was published must have been read again."""


class Reader:
    """Feeds `folds`, all from one thread."""

    def __init__(self, bus: Bus, folds: Sequence[Fold]) -> None:
        self._bus, self._folds = bus, list(folds)
        self._offsets: dict[tuple[str, int], int] = {}
        self.caught_up = threading.Event()

    def add(self, fold: Fold) -> None:
        """One more to feed; before the reading begins."""
        self._folds.append(fold)

    def follow(self, stop: threading.Event) -> None:
        """Read until `stop`. A bus that does not answer is read again from the start: folds drop doubles."""
        while not stop.is_set():
            try:
                for record in self._bus.replay(self._topics(), follow=True):
                    if stop.is_set():
                        return
                    if record is None:
                        self.caught_up.set()
                    else:
                        self._feed(record)
            except Transient as error:
                log.warning("%s", error)
                stop.wait(PAUSE)

    def load(self) -> Self:
        """Read what is there now and return."""
        for record in self._bus.replay(self._topics()):
            if record:
                self._feed(record)
        self.caught_up.set()
        return self

    def wait_for(self, topic: str, partition: int, offset: int, timeout: float = 30) -> None:
        """Until the record that lies there has been read; raises `Transient` after `timeout` seconds. Heeds `interrupt`."""
        deadline = time.monotonic() + timeout
        while self._offsets.get((topic, partition), -1) < offset:
            if time.monotonic() > deadline:
                raise Transient(f"{topic} was not read up to {offset} within {timeout:.0f} s")
            check()
            time.sleep(0.002)

    def _topics(self) -> list[str]:
        wanted = {topic for fold in self._folds for topic in fold.topics}
        return [topic.name for topic in TABLE if topic.name in wanted]

    def _feed(self, record: Record) -> None:
        try:
            message = decode(record.value)
        except (Invalid, Unsupported) as error:
            log.debug("passed over: %s", error)
        else:
            for fold in self._folds:
                if record.topic in fold.topics:
                    fold.read(message, record)
        self._offsets[record.topic, record.partition] = record.offset


def shown(met: Callable[[], bool]) -> bool:
    """Whether a fold came to show in time what was just published."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
