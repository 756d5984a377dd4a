"""The one consumer loop: takes messages, hands them to `delivery.py`, and keeps the membership alive, so work may take hours.

Each of up to `width` messages in hand is handled in a worker thread. A message that has seen several processes die
begins alone, so that it takes no others with it. Does not know HTTP (`service/host.py` runs loops beside a FastAPI
app) nor any service.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from understudy.belt.bus import Bus, Record, Subscription
from understudy.belt.delivery import Deliveries, Lane, tolerated
from understudy.belt.folds.control import Control
from understudy.belt.telemetry import Meter, Outcome
from understudy.belt.teller import Teller
from understudy.belt.topics import BY_MESSAGE, STATION_OF
from understudy.errors import Transient

log = logging.getLogger(__name__)

SUSPECT = 3
"""Deliveries without a step forward after which a message begins alone."""
ALONE = 1.0
"""Seconds for which it stays alone: what ends a process does so at once, as a rule, and others shall not wait for long."""
GLANCE = 0.005
"""Seconds that are given to the bus for one more message: whoever is in hand waits so long at each of his steps."""


@dataclass
class _Hand:
    """One message in hand."""

    record: Record
    since: float
    steps: Generator[Future[Any] | None, None, Outcome]
    """Gives what it waits for: a future, or None for the next tick."""
    waits_for: Future[Any] | None = None


@dataclass
class Loop:
    """Runs one lane until `stop` is set.

    `Loop(bus, Lane("trainer", handlers), member="0").run()` returns after `stop.set()`, raises `Fatal`.
    """

    bus: Bus
    lane: Lane
    control: Control = field(default_factory=Control)
    ready: Callable[[], object] = lambda: None
    """Called before the first message: returns once `control` has caught up."""
    forget: Callable[[str], object] = lambda run: None
    """Told about a run that was deleted while it was worked on, once the work has ended."""
    member: str = "0"
    stop: threading.Event = field(default_factory=threading.Event)
    attempts: int = 5
    """Tries of one delivery before a Transient or an unexpected error becomes a dead letter."""
    deliveries: int = 30
    """Deliveries of one message, without a step forward, before it is taken for poison: something that ends the process each time."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles each time, up to 30."""
    tick: float = 0.5
    """Seconds between two looks at stop, control and membership."""
    reconsider: float = 15.0
    """Seconds after which what was declined is looked at again: its run may have been cancelled."""

    def __post_init__(self) -> None:
        self.station = STATION_OF[self.lane.group]
        self._topics = sorted({BY_MESSAGE[message].name for message in self.lane.handlers})
        self.meter = Meter(self.station, self.lane.group, self._topics)
        self._reconsider_at = 0.0
        self._wait_for = 0.0
        """Until when no more messages are taken beside those in hand."""

    def run(self) -> None:
        """Consume until stopped."""
        self.ready()
        if not (joined := self._join()):
            return
        self._subscription, teller = joined, Teller(self.bus)
        hands: list[_Hand] = []
        workers = ThreadPoolExecutor(self.lane.width, thread_name_prefix=f"{self.lane.group}-handler")
        self._deliveries = Deliveries(
            lane=self.lane,
            subscription=joined,
            workers=workers,
            control=self.control,
            stop=self.stop,
            meter=self.meter,
            tell=teller.tell,
            forget=self.forget,
            attempts=self.attempts,
            deliveries=self.deliveries,
            backoff=self.backoff,
        )
        try:
            while not self.stop.is_set() or hands:
                self._take(hands)
                self._wait(hands)
                for hand in list(hands):
                    self._advance(hand, hands)
        finally:
            for hand in hands:
                hand.steps.close()
            with tolerated("leaving the group"):
                joined.close()
            teller.close()
            workers.shutdown(wait=False)

    def _join(self) -> Subscription | None:
        """Join the group, however long the bus is away; None when told to stop before."""
        while not self.stop.is_set():
            try:
                return self.bus.subscribe(self.lane.group, self._topics, f"{self.lane.group}-{self.member}")
            except Transient as error:
                log.warning("%s", error)
                self.stop.wait(self.backoff)
        return None

    def _take(self, hands: list[_Hand]) -> None:
        """One more message, if there is room and one is there."""
        if not self._room(hands):
            return
        if self._reconsider_at and time.monotonic() > self._reconsider_at:
            self._reconsider_at = 0.0
            self._subscription.reconsider()
        try:
            record = self._subscription.poll(timeout=GLANCE if hands else 0.5)
        except Transient as error:  # of the bus itself; what was not committed comes again
            log.warning("%s", error)
            self.stop.wait(self.backoff)
            return
        if record is None:
            return
        alone = record.delivery > SUSPECT and any(hand.since > time.monotonic() - ALONE for hand in hands)
        again = any((hand.record.topic, hand.record.partition) == (record.topic, record.partition) for hand in hands)
        if alone or again:  # again: we lost it, and have it back before our first work on it has ended
            with tolerated("giving back a message"):
                self._subscription.give_back(record)
            self._wait_for = time.monotonic() + self.tick
            return
        hand = _Hand(record, time.monotonic(), self._deliveries.deliver(record))
        hands.append(hand)
        self._advance(hand, hands)

    def _room(self, hands: list[_Hand]) -> bool:
        if self.stop.is_set() or len(hands) == self.lane.width:
            return False
        if not hands:
            return True
        begun = time.monotonic() - ALONE
        suspects = any(hand.record.delivery > SUSPECT and hand.since > begun for hand in hands)
        return time.monotonic() >= self._wait_for and not suspects

    def _wait(self, hands: list[_Hand]) -> None:
        """Until something that a hand waits for is there, at most a tick; while there is room for more, for a moment only."""
        if hands:
            self._subscription.keep_alive()
            futures = [hand.waits_for for hand in hands if hand.waits_for]
            moment = self.tick / 10 if self._room(hands) else self.tick
            if futures:
                wait(futures, timeout=moment, return_when=FIRST_COMPLETED)
            else:
                self.stop.wait(min(moment, self.tick / 5))

    def _advance(self, hand: _Hand, hands: list[_Hand]) -> None:
        """Let a hand go on until it has to wait, or is over."""
        try:
            hand.waits_for = next(hand.steps)
            while hand.waits_for is not None and hand.waits_for.done():
                hand.waits_for = next(hand.steps)
        except StopIteration as end:
            hands.remove(hand)
            self.meter.ended(hand.record, end.value)
            if end.value == "declined":
                self._reconsider_at = time.monotonic() + self.reconsider
        except BaseException:
            hands.remove(hand)
            raise
