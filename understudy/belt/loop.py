"""The one consumer loop: poll, decode, handle, publish what the handler yields, commit.

A handler is a generator `(message) -> Iterator[Message]`. `Progress` goes out at once; everything else is published
in the same step that commits the message it answers, so a crash at any point neither loses nor doubles a message. Each of
up to `width` messages in hand is handled in a worker thread while the loop keeps the membership alive, so work may take
hours. Errors decide: Invalid -> dead letter and a failure fact, Transient -> again with backoff, Unsupported -> left for a
newer replica, Fatal -> raise. A message whose run was cancelled is closed wherever it is, and committed without a word:
who asked has been answered by the closer.

Does not know HTTP (`service/host.py` runs loops beside a FastAPI app) nor any service.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from understudy.belt.bus import Bus, Fenced, Record
from understudy.belt.contracts import DeadLetter, Message, OnBelt, Progress, decode, failure
from understudy.belt.folds.control import Control, Verdict
from understudy.belt.telemetry import Meter, Outcome
from understudy.belt.topics import BY_MESSAGE, STATION_OF, Group
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
class _Hand:
    """One message in hand."""

    record: Record
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

    def run(self) -> None:
        """Consume until stopped."""
        self.ready()
        if self.stop.is_set():
            return
        self._subscription = self.bus.subscribe(self.lane.group, self._topics, f"{self.lane.group}-{self.member}")
        hands: list[_Hand] = []
        self._workers = ThreadPoolExecutor(self.lane.width, thread_name_prefix=f"{self.lane.group}-handler")
        try:
            while not self.stop.is_set() or hands:
                self._take(hands)
                self._wait(hands)
                for hand in list(hands):
                    self._advance(hand, hands)
        finally:
            for hand in hands:
                hand.steps.close()
            self._subscription.close()
            self._workers.shutdown()

    def _take(self, hands: list[_Hand]) -> None:
        """One more message, if there is room and one is there."""
        if self.stop.is_set() or len(hands) == self.lane.width:
            return
        if self._reconsider_at and time.monotonic() > self._reconsider_at:
            self._reconsider_at = 0.0
            self._subscription.reconsider()
        try:
            record = self._subscription.poll(timeout=0.05 if hands else 0.5)
        except Transient as error:  # of the bus itself; what was not committed comes again
            log.warning("%s", error)
            self.stop.wait(self.backoff)
            return
        if record:
            hand = _Hand(record, self._deliver(record))
            hands.append(hand)
            self._advance(hand, hands)

    def _wait(self, hands: list[_Hand]) -> None:
        """Until something that a hand waits for is there, at most a tick; not at all while there is room for more."""
        if hands:
            self._subscription.keep_alive()
            futures = [hand.waits_for for hand in hands if hand.waits_for]
            room = len(hands) < self.lane.width and not self.stop.is_set()
            if futures:
                wait(futures, timeout=0 if room else self.tick, return_when=FIRST_COMPLETED)
            elif not room:
                self.stop.wait(self.tick / 5)

    def _advance(self, hand: _Hand, hands: list[_Hand]) -> None:
        """Let a hand go on until it has to wait, or is over."""
        try:
            hand.waits_for = next(hand.steps)
            while hand.waits_for is not None and hand.waits_for.done():
                hand.waits_for = next(hand.steps)
        except StopIteration as end:
            hands.remove(hand)
            self.meter.ended(hand.record, end.value)
        except BaseException:
            hands.remove(hand)
            raise

    def _deliver(self, record: Record) -> Generator[Future[Any] | None, None, Outcome]:
        """One record to its end, or let go for redelivery."""
        with self.meter.in_hand(record):
            try:
                return (yield from self._attempts(record))
            except Fenced:
                log.warning("went to another member; dropping this delivery", extra=_context(record))
                return "fenced"
            except Stopped:
                self._subscription.give_back(record)
                return "given_back"
            except Unsupported as error:
                log.warning("left for a newer replica: %s", error, extra=_context(record))
                self._subscription.decline(record)
                self._reconsider_at = time.monotonic() + self.reconsider
                return "declined"

    def _attempts(self, record: Record) -> Generator[Future[Any] | None, None, Outcome]:
        attempt, begun = 1, False
        message: Message | None = None
        while True:
            try:
                message = decode(record.value)
                self._check_wanted(message)
                self._check_needs(message)
                if record.delivery > self.deliveries:
                    raise Invalid(
                        f"Handed out {record.delivery} times without a step forward: it seems to end the process that handles it"
                    )
                handler, begun = self.lane.handlers.get(type(message)), True
                outputs = (yield from self._handle(handler, message, record)) if handler else []
                yield from self._commit(record, outputs)
                return "done"
            except (Stopped, Fatal, Fenced, Unsupported):
                raise
            except Unwanted as verdict:
                log.info("%s: no longer wanted (%s)", getattr(message, "key", "?"), verdict)
                if message and str(verdict) == "deleted" and (begun or record.delivery > 1):
                    forgetting = self._workers.submit(self.forget, message.run)
                    while not forgetting.done():
                        yield forgetting
                    if error := forgetting.exception():
                        log.warning("what %s left was not removed: %s", message.run, error)
                yield from self._commit(record, [])
                return "unwanted"
            except Invalid as error:
                yield from self._bury(record, message, str(error), attempt)
                return "dead_letter"
            except Exception as error:
                if not isinstance(error, Transient):
                    log.exception("handler failed unexpectedly", extra=_context(record))
                for_ever = self.lane.patient and isinstance(error, Transient)
                if attempt >= self.attempts and not for_ever:
                    yield from self._bury(record, message, _last_words(error, attempt), attempt)
                    return "dead_letter"
                if for_ever:
                    log.warning("%s", error)
                self.meter.ended(record, "retry")
                yield from self._pause(min(30.0, self.backoff * 2 ** min(attempt - 1, 10)), message, record)
                attempt += 1

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
        running: Future[Any] = self._workers.submit(step, lambda: iter(handler(*arguments)))
        steps: Any = None
        try:
            yield from self._until(running, message, record)
            steps = running.result()
            while True:
                running = self._workers.submit(step, next, steps, _DONE)
                yield from self._until(running, message, record)
                output = running.result()
                if output is _DONE:
                    return outputs
                if isinstance(output, Progress):
                    self._tell(output)
                    if output.mark is not None and output.mark > furthest:
                        furthest = output.mark
                        self._remember(record, furthest)
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
            running.add_done_callback(lambda done: self._workers.submit(_close, done, steps, closing))
            while not closing.done():
                yield closing
            raise
        except GeneratorExit:  # the loop itself ends by an error
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
        if not self._subscription.holds(record):
            raise Fenced
        self._check_wanted(message)

    def _check_wanted(self, message: Message | None) -> None:
        if message and (verdict := self.control.verdict(message)) in self.lane.obeys:
            raise Unwanted(verdict)

    def _check_needs(self, message: Message) -> None:
        if isinstance(message, OnBelt) and (lacking := set(message.needs) - self.lane.has):
            what = ", ".join(sorted(lacking))
            step = f"waits for a {self.station} that has {what}; this one has not"
            self._tell(Progress.answering(message, station=self.station, step=step))
            raise Unsupported(f"Item `{message.item}` of {message.run} needs {what}", "Upgrade this replica.")

    def _remember(self, record: Record, mark: int) -> None:
        try:
            self._subscription.furthest(record, mark)
        except Transient as error:
            log.warning("%s", error)

    def _tell(self, progress: Progress) -> None:
        """Publish what informs people only: work goes on although nobody hears of it."""
        self.meter.progress(progress)
        try:
            self.bus.publish(progress.model_copy(update={"at": time.time()}))
        except Transient as error:
            log.warning("progress was not published: %s", error)

    def _commit(self, record: Record, outputs: Sequence[Message]) -> Generator[None, None, None]:
        """Once the work is done, a bus that is away is waited for: the outputs are in hand."""
        seconds = self.backoff
        while True:
            try:
                self._subscription.commit(record, outputs)
                return
            except Transient as error:
                log.warning("%s", error)
                yield from self._pause(seconds, None, record)
                seconds = min(30.0, 2 * seconds)

    def _bury(self, record: Record, message: Message | None, reason: str, attempts: int) -> Generator[None, None, None]:
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
        yield from self._commit(record, outputs)

    def _pause(self, seconds: float, message: Message | None, record: Record) -> Generator[None, None, None]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield None
            self._look(message, record)


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
