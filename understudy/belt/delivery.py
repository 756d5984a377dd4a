"""One message from its taking to its end: decode, handle, publish what the handler yields with the commit.

Errors decide: Invalid -> dead letter and a failure fact, Transient -> again with backoff, Unsupported -> left for a newer
replica, Fatal -> raise. A message whose run was cancelled or deleted is closed wherever it is, and committed without a word:
who asked has been answered by the closer. Written as generators that give what they wait for, so that one thread looks after
many (`loop.py`); handlers run in the workers' threads. Does not take messages.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from understudy.belt.bus import Fenced, Record, Subscription
from understudy.belt.contracts import DeadLetter, Message, OnBelt, Progress, decode, failure
from understudy.belt.folds.control import Control, Verdict
from understudy.belt.telemetry import Meter, Outcome
from understudy.belt.topics import STATION_OF, Group
from understudy.errors import Fatal, Invalid, Transient, Unsupported
from understudy.interrupt import Interrupted, interruptible

Handler = Callable[..., Iterator[Message]]
"""(message), or (message, record) in a lane whose handlers are `located`."""
Handlers = Mapping[type[Message], Handler]

log = logging.getLogger(__name__)

_DONE = object()
"""What a handler's generator gives when it has ended."""


@dataclass(frozen=True)
class Lane:
    """What one loop of a service does."""

    group: Group
    handlers: Handlers
    width: int = 1
    """Messages in hand at once."""
    has: frozenset[str] = frozenset()
    """Features that this replica has; a message that needs another one is left for a replica that has it."""
    located: bool = False
    """Handlers are called with (message, record): they must know where on its topic a message lies."""
    patient: bool = False
    """A Transient is tried again for ever: what this lane decides must not be lost to a store that is away."""
    obeys: tuple[Verdict, ...] = ("cancelled", "deleted")
    """Verdicts that end the handling of a message."""


class Stopped(Exception):
    """The loop was asked to stop; the message stays uncommitted and is delivered again."""


class Unwanted(Exception):
    """The message's run was cancelled or deleted meanwhile."""


@dataclass
class Deliveries:
    """Delivers messages of one lane; `subscription` is used by the loop's thread alone."""

    lane: Lane
    subscription: Subscription
    workers: ThreadPoolExecutor
    control: Control
    stop: threading.Event
    meter: Meter
    tell: Callable[[Progress], None]
    """Publishes what informs people only."""
    forget: Callable[[str], object]
    """Told about a run that was deleted while it was worked on, once the work has ended."""
    attempts: int
    deliveries: int
    backoff: float
    """As `Loop` has them."""

    def __post_init__(self) -> None:
        self.station = STATION_OF[self.lane.group]

    def deliver(self, record: Record) -> Generator[Future[Any] | None, None, Outcome]:
        """One record to its end, or let go for redelivery."""
        with self.meter.in_hand(record):
            try:
                return (yield from self._to_its_end(record))
            except Fenced:
                log.warning("went to another member; dropping this delivery", extra=_context(record))
                return "fenced"
            except Stopped:
                with tolerated("giving back a message"):
                    self.subscription.give_back(record)
                return "given_back"
            except Unsupported as error:
                log.warning("left for a newer replica: %s", error, extra=_context(record))
                with tolerated("declining a message"):
                    self.subscription.decline(record)
                return "declined"

    def _to_its_end(self, record: Record) -> Generator[Future[Any] | None, None, Outcome]:
        try:
            message = decode(record.value)
        except Invalid as error:
            return (yield from self._bury(record, None, str(error), 1))
        try:
            return (yield from self._attempts(message, record))
        except Unwanted as verdict:
            log.info("%s: no longer wanted (%s)", message.key, verdict)
            if str(verdict) == "deleted":
                yield from self._forgotten(message.run)
            return (yield from self._commit(record, [], "unwanted"))

    def _attempts(self, message: Message, record: Record) -> Generator[Future[Any] | None, None, Outcome]:
        attempt = 1
        while True:
            self._check_wanted(message)
            self._check_needs(message)
            try:
                if record.delivery > self.deliveries and not self.lane.patient:
                    raise Invalid(
                        f"Handed out {record.delivery} times without a step forward: it seems to end the process that handles it"
                    )
                handler = self.lane.handlers.get(type(message))
                outputs = (yield from self._handle(handler, message, record)) if handler else []
                return (yield from self._commit(record, outputs, "done"))
            except (Stopped, Fatal, Fenced, Unsupported, Unwanted):
                raise
            except Invalid as error:
                return (yield from self._bury(record, message, str(error), attempt))
            except Exception as error:
                if not isinstance(error, Transient):
                    log.exception("handler failed unexpectedly", extra=_context(record))
                elif self.lane.patient:
                    log.warning("%s", error)
                for_ever = self.lane.patient and isinstance(error, Transient)
                if attempt >= self.attempts and not for_ever:
                    return (yield from self._bury(record, message, _last_words(error, attempt), attempt))
            self.meter.ended(record, "retry")
            yield from self._pause(min(30.0, self.backoff * 2 ** min(attempt - 1, 10)), message, record)
            attempt += 1

    def _forgotten(self, run: str) -> Generator[Future[Any], None, None]:
        """What a deleted run left is removed, in a worker: that may take its time."""
        forgetting = self.workers.submit(self.forget, run)
        while not forgetting.done():
            yield forgetting
        if error := forgetting.exception():
            log.warning("what %s left was not removed: %s", run, error)

    def _handle(
        self, handler: Handler, message: Message, record: Record
    ) -> Generator[Future[Any] | None, None, list[Message]]:
        """Run the handler to its end in a worker thread; gives what shall be published with the commit."""
        outputs: list[Message] = []
        furthest = record.furthest
        enough = threading.Event()

        def step(work: Callable[..., Any], *arguments: Any) -> Any:
            with interruptible(enough):
                return work(*arguments)

        arguments = (message, record) if self.lane.located else (message,)
        running: Future[Any] = self.workers.submit(step, lambda: iter(handler(*arguments)))
        steps: Any = None
        try:
            yield from self._until(running, message, record)
            steps = running.result()
            while True:
                running = self.workers.submit(step, next, steps, _DONE)
                yield from self._until(running, message, record)
                output = running.result()
                if output is _DONE:
                    return outputs
                if isinstance(output, Progress):
                    self.meter.progress(output)
                    self.tell(output)
                    if output.mark is not None and output.mark > furthest:
                        furthest = output.mark
                        with tolerated("remembering how far it got"):
                            self.subscription.furthest(record, furthest)
                elif isinstance(output, Message):
                    outputs.append(output)
                self._look(message, record)
        except Interrupted:  # of a step that was told to stop by somebody else
            raise Stopped from None
        except (Stopped, Fenced, Unwanted):
            # The step that may still run comes first; then the handler's own `finally` ends its children. The message stays
            # in hand until then: two workers on one unit of work would spoil it.
            enough.set()
            closing: Future[None] = Future()
            running.add_done_callback(lambda done: self.workers.submit(_close, done, steps, closing))
            while not closing.done():
                yield closing
            raise
        except BaseException:  # the handler's own, and then it has ended; or the loop ends by an error
            enough.set()
            running.add_done_callback(lambda done: _close(done, steps, Future()))
            raise

    def _until(self, running: Future[Any], message: Message, record: Record) -> Generator[Future[Any], None, None]:
        while not running.done():
            yield running
            self._look(message, record)

    def _look(self, message: Message | None, record: Record) -> None:
        """Raise what ends the work on a message from outside."""
        if self.stop.is_set():
            raise Stopped
        if not self.subscription.holds(record):
            raise Fenced
        self._check_wanted(message)

    def _check_wanted(self, message: Message | None) -> None:
        if message and (verdict := self.control.verdict(message)) in self.lane.obeys:
            raise Unwanted(verdict)

    def _check_needs(self, message: Message) -> None:
        if isinstance(message, OnBelt) and (lacking := set(message.needs) - self.lane.has):
            what = ", ".join(sorted(lacking))
            step = f"waits for a {self.station} that has {what}; this one has not"
            self.tell(Progress.answering(message, station=self.station, step=step))
            raise Unsupported(f"Item `{message.item}` of {message.run} needs {what}", "Upgrade this replica.")

    def _commit(self, record: Record, outputs: Sequence[Message], outcome: Outcome) -> Generator[None, None, Outcome]:
        """Once the work is done, a bus that is away is waited for: the outputs are in hand. Gives `outcome`."""
        seconds = self.backoff
        while True:
            try:
                self.subscription.commit(record, outputs)
                return outcome
            except Transient as error:
                log.warning("%s", error)
                yield from self._pause(seconds, None, record)
                seconds = min(30.0, 2 * seconds)

    def _bury(
        self, record: Record, message: Message | None, reason: str, attempts: int
    ) -> Generator[None, None, Outcome]:
        """Dead letter and failure fact in one step with the commit: if they cannot be written, nothing is committed.

        Who fills a message with names up to its limit gets no fact, which would have them and the reason too.
        """
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
        try:
            return (yield from self._commit(record, outputs, "dead_letter"))
        except Invalid as error:
            log.error("buried without a word to its run: %s", error, extra=_context(record))
            return (yield from self._commit(record, outputs[:1], "dead_letter"))

    def _pause(self, seconds: float, message: Message | None, record: Record) -> Generator[None, None, None]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield None
            self._look(message, record)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """A bus that is away does not keep us from going on."""
    try:
        yield
    except Transient as error:
        log.warning("%s: %s", what, error)


def _close(done: Future[Any], steps: Any, closing: Future[None]) -> None:
    """End a handler, in a worker's thread, once its last step is over."""
    try:
        if steps is None and done.exception() is None:
            steps = done.result()
        getattr(steps, "close", lambda: None)()
    except BaseException:
        log.exception("a handler did not end well")
    finally:
        closing.set_result(None)


def _context(record: Record) -> dict[str, object]:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def _last_words(error: Exception, attempts: int) -> str:
    if isinstance(error, Transient):
        return f"Gave up after {attempts} attempts: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return f"Unexpected {type(error).__name__} at {place} after {attempts} attempts: {error}. A bug; the log has the trace."
