"""The one consumer loop: poll, decode, handle, publish what the handler yields, commit.

A handler is a generator `(message) -> Iterator[Message]`. `Progress` goes out at once; everything else is published
in the same step that commits the message it answers, so a crash at any point neither loses nor doubles a message. The
handler runs in a worker thread while the loop keeps the membership alive, so work may take hours. Errors decide:
Invalid -> dead letter and a failure fact, Transient -> again with backoff, Fatal -> raise.

Does not know HTTP (`host.py` runs this loop beside a FastAPI app) nor any service.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from understudy.belt.bus import Bus, Fenced, Record, Subscription
from understudy.belt.contracts import DeadLetter, Message, Progress, Station, decode, failure
from understudy.belt.topics import BY_MESSAGE
from understudy.errors import Fatal, Invalid, Transient
from understudy.service.telemetry import Meter, Outcome

Handler = Callable[[Any], Iterator[Message]]
Handlers = Mapping[type[Message], Handler]

log = logging.getLogger(__name__)

_DONE = object()
"""What a handler's generator gives when it has ended."""


class Stopped(Exception):
    """The loop was asked to stop; the message stays uncommitted and is delivered again."""


@dataclass
class Loop:
    """Runs one service's handlers until `stop` is set.

    `Loop(bus, "trainer", handlers, member="0").run()` returns after `stop.set()`, raises `Fatal`.
    """

    bus: Bus
    station: Station
    handlers: Handlers
    member: str = "0"
    stop: threading.Event = field(default_factory=threading.Event)
    attempts: int = 5
    """Tries of one delivery before a Transient or an unexpected error becomes a dead letter."""
    deliveries: int = 30
    """Deliveries of one message before it is taken for poison: something that ends the process each time."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles each time, up to 30."""
    keep_alive_every: float = 0.5
    sleep: Callable[[float], object] | None = None
    """Replaces waiting in tests; default waits on `stop`."""

    def __post_init__(self) -> None:
        self._topics = sorted({BY_MESSAGE[message].name for message in self.handlers})
        self.meter = Meter(self.station, self._topics)

    def run(self) -> None:
        """Consume until stopped."""
        subscription = self.bus.subscribe(self.station, self._topics, f"{self.station}-{self.member}")
        with ThreadPoolExecutor(1, thread_name_prefix=f"{self.station}-handler") as worker:
            try:
                while not self.stop.is_set():
                    try:
                        if record := subscription.poll(timeout=0.5):
                            self.meter.ended(record, self._take(record, subscription, worker))
                    except Transient as error:  # of the bus itself; what was not committed comes again
                        log.warning("%s", error)
                        self.stop.wait(self.backoff)
            except Stopped:
                pass
            finally:
                subscription.close()

    def _take(self, record: Record, subscription: Subscription, worker: ThreadPoolExecutor) -> Outcome:
        with self.meter.in_hand(record):
            try:
                return self._deliver(record, subscription, worker)
            except Fenced:
                log.warning("went to another member; dropping this delivery", extra=_context(record))
                return "fenced"

    def _deliver(self, record: Record, subscription: Subscription, worker: ThreadPoolExecutor) -> Outcome:
        """One record to its end, or left for redelivery (raises Stopped, Fatal, Fenced)."""
        attempt = 1
        message: Message | None = None
        while True:
            try:
                message = decode(record.value)
                if record.attempt > self.deliveries:
                    raise Invalid(
                        f"Handed out {record.attempt} times without an end: it seems to end the process that handles it"
                    )
                handler = self.handlers.get(type(message))
                outputs = self._handle(handler, message, subscription, worker) if handler else []
                subscription.commit(record, outputs)
                return "done"
            except (Stopped, Fatal, Fenced):
                raise
            except Invalid as error:
                self._bury(record, message, str(error), attempt, subscription)
                return "dead_letter"
            except Exception as error:
                if not isinstance(error, Transient):
                    log.exception("handler failed unexpectedly", extra=_context(record))
                if attempt >= self.attempts:
                    self._bury(record, message, _last_words(error, attempt), attempt, subscription)
                    return "dead_letter"
                self.meter.ended(record, "retry")
                self._wait(min(30.0, self.backoff * 2 ** (attempt - 1)), subscription)
                attempt += 1

    def _handle(
        self, handler: Handler, message: Message, subscription: Subscription, worker: ThreadPoolExecutor
    ) -> list[Message]:
        """Run the handler to its end in the worker thread; returns what shall be published with the commit."""
        outputs: list[Message] = []
        steps = worker.submit(lambda: iter(handler(message))).result()
        try:
            while True:
                step: Future[object] = worker.submit(next, steps, _DONE)
                while not wait([step], timeout=self.keep_alive_every).done:
                    subscription.keep_alive()
                    if self.stop.is_set():
                        raise Stopped
                output = step.result()
                if output is _DONE:
                    return outputs
                if isinstance(output, Progress):
                    self.meter.progress(output)
                    self._tell(output)
                elif isinstance(output, Message):
                    outputs.append(output)
                if self.stop.is_set():
                    raise Stopped
                subscription.keep_alive()
        finally:
            # Queued behind the step that may still run: lets the handler's own `finally` end its children.
            worker.submit(getattr(steps, "close", lambda: None))

    def _tell(self, progress: Progress) -> None:
        """Publish what informs people only: work goes on although nobody hears of it."""
        try:
            self.bus.publish(progress)
        except Transient as error:
            log.warning("progress was not published: %s", error)

    def _bury(
        self, record: Record, message: Message | None, reason: str, attempts: int, subscription: Subscription
    ) -> None:
        """Dead letter and failure fact in one step with the commit: if they cannot be written, nothing is committed."""
        log.error("dead letter: %s", reason, extra=_context(record))
        outputs: list[Message] = [
            DeadLetter(
                run=message.run if message else "unknown",
                topic=record.topic,
                station=self.station,
                reason=reason,
                attempts=attempts,
                value=record.value.decode(errors="replace"),
                partition=record.partition,
                offset=record.offset,
            )
        ]
        if message:
            outputs.append(failure(message, self.station, reason))
        subscription.commit(record, outputs)

    def _wait(self, seconds: float, subscription: Subscription) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            (self.sleep or self.stop.wait)(min(left, self.keep_alive_every))
            if self.stop.is_set():
                raise Stopped
            subscription.keep_alive()


def _context(record: Record) -> dict[str, object]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def _last_words(error: Exception, attempts: int) -> str:
    if isinstance(error, Transient):
        return f"Gave up after {attempts} attempts: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return f"Unexpected {type(error).__name__} at {place} after {attempts} attempts: {error}. A bug; the log has the trace."
