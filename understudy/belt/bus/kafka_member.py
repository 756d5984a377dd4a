"""A member of a group on Kafka: which record it gets next, what it has in hand, and how it lets go of it.

- It holds fetched records back until it has seen the next one of each of its partitions, because the oldest goes first
  and kafka-python gives all of one partition before the next. What is held back is not committed, and dropped with its
  partition.
- Work may take hours: meanwhile the member goes on polling and holds back what it receives, so it keeps its place.
- How often a record was handed out, how far it got, and by whom ride along with the committed offset.
- Who could not be heard for longer than a session goes on with what it has in hand, and keeps it if nobody took it meanwhile.
- What it has in hand and what it declined it tells the group with the assignor's user data; who gets what is `balance.py`.

Does not publish on its own account nor read along (`kafka.py`)."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kafka import ConsumerRebalanceListener, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as trouble
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.coordinator.base import MemberState
from kafka.future import Future
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from understudy.belt.bus import Fenced, Record
from understudy.belt.bus.balance import Member, owners, share
from understudy.belt.contracts import Message
from understudy.errors import Fatal

if TYPE_CHECKING:
    from understudy.belt.bus.kafka import KafkaBus

PATIENCE = 60.0
"""Seconds to wait for brokers that do not answer."""
SHORT = 1.0
"""Seconds to wait for them where the work can go on without."""
ORDERLY = 4.0
"""Seconds that leaving in order may take; after that the session ends it."""
TOGETHER = 0.1
"""Seconds to wait for the next records of all partitions before the oldest of those that are there is taken."""
FULL = 100
"""Records of one partition held back, from which on no more are fetched."""
QUIET = 60.0
"""Seconds between two log lines about brokers that are away."""
MOVED = (
    trouble.CommitFailedError,
    trouble.IllegalGenerationError,
    trouble.RebalanceInProgressError,
    trouble.UnknownMemberIdError,
)
"""The group is, or was, being shared out anew: ask again whose partition it is."""
REPLACED = (trouble.FencedInstanceIdError, trouble.ProducerFencedError)
"""Somebody else came under our name, or Kafka took us for dead."""

log = logging.getLogger(__name__)


@dataclass
class _InHand:
    raw: Any
    """As the consumer received it."""
    by: str
    """Who handed it out."""
    deliveries: int
    """Since it last got further, this one included."""
    furthest: int
    record: Record | None = None
    """As it was handed out: taken again it is another one, and whoever has the first has lost it."""
    since: float = field(default_factory=time.monotonic)

    def said(self, deliveries: int) -> OffsetAndMetadata:
        """Its offset, and what is to be remembered of it."""
        return OffsetAndMetadata(self.raw.offset, f"{deliveries} {self.furthest} {self.by}")


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of a group; see `bus.Subscription`."""

    def __init__(self, bus: KafkaBus, group: str, topics: Sequence[str], member: str) -> None:
        self._bus = bus
        self._group = bus.prefix + group
        self._member = member
        self._by = uuid.uuid4().hex[:8]
        """Tells us from every other member, also from one of our name."""
        self._hand: dict[TopicPartition, _InHand] = {}
        self._doubtful: set[TopicPartition] = set()
        """What is in hand of partitions that the group took away because it did not hear us."""
        self._heads: dict[TopicPartition, deque[Any]] = {}
        """What was fetched and is not in hand yet, in order."""
        self._declined: dict[TopicPartition, int] = {}
        """Partition -> offset of its next record, when this member cannot do that: what the group is told."""
        self._passed_over: dict[TopicPartition, int] = {}
        """Of these, those that are not to be taken at the moment."""
        self._waited: dict[TopicPartition, int] = {}
        """Partition -> its position, when waiting there for more did not help."""
        self._positions: dict[TopicPartition, OffsetAndMetadata] = {}
        """What is committed of the partitions we have, as far as we asked."""
        self._replaced = False
        self._alive = self._asked = self._checked = 0.0
        self._logged = -QUIET
        self._members = 1
        self._told: tuple[bool, set[TopicPartition]] = (False, set())
        self._producer = bus.producer(f"{self._group}.{self._member}")
        self._consumer = bus.consumer(
            group_id=self._group,
            group_instance_id=member,
            partition_assignment_strategy=[_Assignor(self)],
            max_poll_records=1000,
            session_timeout_ms=int(bus.session * 1000),
            max_poll_interval_ms=int(bus.poll_interval * 1000),
            heartbeat_interval_ms=int(min(1.0, bus.session / 6) * 1000),
        )
        self._consumer.subscribe([bus.prefix + topic for topic in topics], listener=self)

    def poll(self, timeout: float) -> Record | None:
        if self._replaced:
            raise Fatal(
                f"Another process joined {self._group} as {self._member}",
                "Give every replica a name of its own in UNDERSTUDY_MEMBER.",
            )
        deadline = time.monotonic() + timeout
        with self._bus.explained(f"{self._group} could not be polled"):
            try:
                while True:
                    self._asked = time.monotonic()
                    # What is held back already needs no waiting.
                    waiting = not self._oldest() or not self._settled()
                    self._fetch(max(0.0, deadline - self._asked) if waiting else 0)
                    if self._settled():
                        if self._oldest():
                            self._await_the_others()
                            return self._take()
                        self._pass_marks()
                    if time.monotonic() >= deadline:
                        return None
            except MOVED:  # the next poll knows what is still ours
                return None
            except REPLACED:
                self._replaced = True
                return None

    def keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._alive < 0.5:
            return
        self._alive = now
        try:
            self._take_part()
        except trouble.KafkaError as error:
            self._mention(error)

    def holds(self, record: Record) -> bool:
        hand = self._hand.get(self._partition(record))
        return hand is not None and hand.record is record and not self._replaced

    def furthest(self, record: Record, mark: int) -> None:
        if self.holds(record) and mark > (hand := self._hand[self._partition(record)]).furthest:
            hand.deliveries, hand.furthest = 0, mark
            self._remember(record, lambda: hand.said(0))

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        partition = self._partition(record)
        with self._bus.explained(f"{record.topic} could not be committed"):

            def done() -> None:
                after = OffsetAndMetadata(self._after(partition, record.offset), "")
                if outputs:
                    self._transact(partition, after, outputs)
                else:
                    self._commit({partition: after})

            if not self._while_ours(record, done):
                raise Fenced
            self._hand.pop(partition, None)
            self._declined.pop(partition, None)
            self._ask_anew_if_told_otherwise()

    def give_back(self, record: Record) -> None:
        if self.holds(record):
            hand = self._hand[self._partition(record)]
            self._remember(record, lambda: hand.said(max(hand.deliveries - 1, 0)))
        if self.holds(record):
            self._put_back(self._partition(record))

    def decline(self, record: Record) -> None:
        partition = self._partition(record)
        self._declined[partition] = self._passed_over[partition] = record.offset
        self.give_back(record)

    def reconsider(self) -> None:
        # The group is not told: if we still cannot do it, nothing needs to move.
        self._passed_over.clear()

    def close(self) -> None:
        # In a thread, because no timeout of kafka-python bounds all of it when the brokers are away.
        leaving = threading.Thread(target=self._leave, daemon=True)
        leaving.start()
        leaving.join(ORDERLY)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        for partition in assigned & self._doubtful:  # what is in hand would come again
            self._consumer.seek(partition, self._hand[partition].raw.offset + 1)

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        for partition in revoked:
            self._hand.pop(partition, None)
        self._forget(revoked)

    def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        self._forget(lost)
        self._doubtful = lost & self._hand.keys()

    def _forget(self, partitions: set[TopicPartition]) -> None:
        for partition in partitions:
            for known in (self._heads, self._positions, self._waited):
                known.pop(partition, None)
        self._doubtful -= partitions

    def says(self) -> tuple[set[TopicPartition], set[TopicPartition], bool, set[TopicPartition]]:
        """What the group is to know: the partitions we have, those we work on, whether we can take no more, and what we
        declined."""
        self._told = self._busy(), set(self._declined)
        return set(self._consumer.assignment()), set(self._hand), *self._told

    def shared_out(self, members: int) -> None:
        """The group has so many members now."""
        self._members = members

    # --- receiving

    def _fetch(self, timeout: float) -> None:
        """Take part in the group, and hold back what comes."""
        self._ask_anew_if_told_otherwise()
        self._take_up_what_was_joined()
        for partition in self._consumer.assignment():
            if len(self._heads.get(partition, ())) >= FULL:
                self._consumer.pause(partition)
            elif partition in self._consumer.paused():
                self._consumer.resume(partition)
        for partition, records in self._consumer.poll(timeout_ms=int(timeout * 1000)).items():
            self._heads.setdefault(partition, deque()).extend(records)
        self._forget_what_others_did()

    def _oldest(self) -> TopicPartition | None:
        """The partition with the oldest next record that we may take."""
        here = [
            (heads[0].timestamp, heads[0].offset, partition)
            for partition, heads in self._heads.items()
            if heads and partition not in self._hand and self._passed_over.get(partition) != heads[0].offset
        ]
        return min(here)[2] if here else None

    def _await_the_others(self) -> None:
        """Until the next record of every partition is known that has one."""
        deadline = time.monotonic() + TOGETHER
        while unknown := self._unknown():
            if time.monotonic() > deadline:  # a transaction under way, or a broker that is slow: not twice at one place
                self._waited.update(unknown)
                return
            self._fetch(TOGETHER / 10)

    def _unknown(self) -> dict[TopicPartition, int]:
        """Partitions that have more, as far as we heard, but none of it here; with our positions."""
        unknown = {}
        for partition in self._consumer.assignment():
            if not self._heads.get(partition) and partition not in self._hand:
                at, end = self._at(partition), self._end(partition)
                if at < end and self._waited.get(partition) != at:
                    unknown[partition] = at
        return unknown

    def _take(self) -> Record | None:
        partition = self._oldest()
        if partition is None:  # revoked meanwhile
            return None
        deliveries, furthest = self._known_of(partition, self._heads[partition][0].offset)
        raw = self._heads[partition].popleft()
        # In hand before it is committed: else a sharing out in this moment would not know that we work on it.
        hand = self._hand[partition] = _InHand(raw, self._by, deliveries + 1, furthest)
        try:
            self._commit({partition: hand.said(hand.deliveries)})
        except BaseException:
            self._put_back(partition)
            raise
        hand.record = self._bus.incoming(raw, hand.deliveries, furthest)
        return hand.record

    def _put_back(self, partition: TopicPartition) -> None:
        if hand := self._hand.pop(partition, None):
            self._heads.setdefault(partition, deque()).appendleft(hand.raw)

    def _at(self, partition: TopicPartition) -> int:
        """The offset that is fetched next; -1 when that is not known yet, or the partition was revoked just now."""
        at: int | None = None
        with contextlib.suppress(trouble.IllegalStateError):
            at = self._consumer.position(partition, timeout_ms=0)
        return -1 if at is None else at

    def _end(self, partition: TopicPartition) -> float:
        """The end of the partition as far as we heard; endless when we heard nothing yet."""
        end: int | None = None
        with contextlib.suppress(trouble.IllegalStateError):
            end = self._consumer.highwater(partition)
        return float("inf") if end is None else end

    # --- positions

    def _position(self, partition: TopicPartition) -> OffsetAndMetadata:
        """What the group committed; offset -1 when nothing."""
        if partition not in self._positions:
            found = self._consumer.committed(partition, metadata=True, timeout_ms=int(PATIENCE * 1000))
            self._positions[partition] = found or OffsetAndMetadata(-1, "")
        return self._positions[partition]

    def _known_of(self, partition: TopicPartition, offset: int) -> tuple[int, int]:
        """How often a record was delivered since it last got further, and how far it got."""
        position = self._position(partition)
        if position.offset != offset or not position.metadata:
            return 0, 0
        deliveries, furthest = position.metadata.split()[:2]
        return int(deliveries), int(furthest)

    def _after(self, partition: TopicPartition, offset: int) -> int:
        """The offset of the next record; what lies between are marks of transactions, and not waited for by anybody."""
        if heads := self._heads.get(partition):
            following: int = heads[0].offset
            return following
        return max(offset + 1, self._at(partition))

    def _pass_marks(self) -> None:
        """Commit past what transactions leave in the log, so that a group that has done everything has no lag."""
        passed = {}
        for partition in self._consumer.assignment():
            if not self._heads.get(partition) and partition not in self._hand:
                at = self._at(partition)
                if at > self._position(partition).offset:
                    passed[partition] = OffsetAndMetadata(at, "")
        if passed:
            self._commit(passed)

    def _commit(self, positions: Mapping[TopicPartition, OffsetAndMetadata], patience: float = PATIENCE) -> None:
        self._consumer.commit(dict(positions), timeout_ms=int(patience * 1000))
        self._positions.update(positions)

    def _transact(self, partition: TopicPartition, position: OffsetAndMetadata, outputs: Sequence[Message]) -> None:
        outgoing = [self._bus.outgoing(message) for message in outputs]
        try:
            self._producer.begin_transaction()
            for each in outgoing:
                self._producer.send(**each)
            self._producer.send_offsets_to_transaction({partition: position}, self._consumer.group_metadata())
            self._producer.commit_transaction()
        except REPLACED:
            raise
        except MOVED:
            self._producer.abort_transaction()
            raise
        except trouble.KafkaError:
            # Whether it went through is open. A new producer of our name brings the broker to finish it, one way or the other.
            failed, self._producer = self._producer, self._bus.producer(f"{self._group}.{self._member}")
            close_producer(failed)
            self._positions.pop(partition, None)
            if self._position(partition).offset != position.offset:
                raise
        self._positions[partition] = position

    def _while_ours(self, record: Record, attempt: Callable[[], None], patience: float = float("inf")) -> bool:
        """Try until the group stands still, or `patience` ends; False when the record is not ours any more."""
        deadline = time.monotonic() + patience
        while self.holds(record) and time.monotonic() < deadline:
            try:
                if self._partition(record) not in self._doubtful:
                    attempt()
                    return True
                self._take_part()
            except MOVED:
                self._take_part()  # which tells whether the partition stays ours
            except REPLACED:
                self._replaced = True
        return False

    def _remember(self, record: Record, said: Callable[[], OffsetAndMetadata]) -> None:
        """Of a record in hand. When that fails a delivery counts too much, which ends no work."""
        partition = self._partition(record)
        try:
            self._while_ours(record, lambda: self._commit({partition: said()}, SHORT), SHORT)
        except trouble.KafkaError as error:
            self._mention(error)

    # --- the group

    def _take_part(self) -> None:
        """Poll, so that the group sees us alive; learn what became of the records in hand."""
        try:
            # Whoever has quick work in hand has no time to wait; who waits to join has.
            self._fetch(0 if self._settled() else 0.05)
            self._clear_doubts()
            # kafka-python does not say that somebody came under our name: a commit does.
            if sure := {p: hand.said(hand.deliveries) for p, hand in self._hand.items() if p not in self._doubtful}:
                self._commit(sure, SHORT)
        except MOVED:
            pass
        except REPLACED:
            self._replaced = True

    def _clear_doubts(self) -> None:
        """Keep of what the group took away what it gave back and nobody else took meanwhile."""
        for partition in tuple(self._doubtful) if self._settled() else ():
            ours = partition in self._consumer.assignment()
            if ours:
                position = self._position(partition)
                said = (position.metadata or "").split()
                ours = position.offset == self._hand[partition].raw.offset and said[2:] == [self._by]
                if not ours:
                    self._heads.pop(partition, None)
                    self._consumer.seek(partition, position.offset)
            if not ours:
                del self._hand[partition]
            self._doubtful.discard(partition)

    def _settled(self) -> bool:
        """Whether the group is not being shared out. While it is, brokers answer nothing else: the request to join is
        ahead on the same connection."""
        return bool(self._consumer.group_metadata().state is MemberState.STABLE)

    def _take_up_what_was_joined(self) -> None:
        """kafka-python throws away what became of a join when that came between two polls, and joins anew: two members that
        poll briefly would do so for ever."""
        joining = self._consumer._coordinator._join_task
        if joining is not None and joining.is_done:
            self._consumer._coordinator._join_task = _Joined(joining)

    def _busy(self) -> bool:
        """Work takes long, and we do not ask for more."""
        now, bound = time.monotonic(), self._bus.busy
        return now - self._asked > bound and any(now - hand.since > bound for hand in tuple(self._hand.values()))

    def _ask_anew_if_told_otherwise(self) -> None:
        """Have the partitions shared out again once we can take no more, or again, or cannot do what we have."""
        busy, declined = self._told
        if self._members > 1 and (self._busy() != busy or self._declined.keys() - declined):
            self._consumer._coordinator.request_rejoin()  # not public, but there is no other way to say it

    def _forget_what_others_did(self) -> None:
        """Of the records we declined; else their partitions would never come to us again."""
        if self._declined and self._settled() and time.monotonic() - self._checked > 5:
            self._checked = time.monotonic()
            for partition, offset in tuple(self._declined.items()):
                if (self._consumer.committed(partition, timeout_ms=int(SHORT * 1000)) or 0) > offset:
                    del self._declined[partition]

    def _leave(self) -> None:
        with contextlib.suppress(trouble.KafkaError):
            given_back = {p: hand.said(max(hand.deliveries - 1, 0)) for p, hand in tuple(self._hand.items())}
            self._hand.clear()
            if given_back and not self._replaced:
                self._commit(given_back, SHORT)
        close_producer(self._producer)
        self._consumer.close(autocommit=False, timeout_ms=int(SHORT * 1000))
        if not self._replaced:
            with contextlib.suppress(trouble.KafkaError):
                self._bus.forget(self._group, self._member)

    def _partition(self, record: Record) -> TopicPartition:
        return TopicPartition(self._bus.prefix + record.topic, record.partition)

    def _mention(self, error: trouble.KafkaError) -> None:
        if time.monotonic() - self._logged >= QUIET:
            self._logged = time.monotonic()
            log.warning("%s cannot reach its group at the moment: %s", self._member, error)


class _Joined:
    """A join that ended, in the shape of one that goes on: whoever waits for it hears at once what became of it."""

    is_done = False

    def __init__(self, joining: Future) -> None:
        self.add_callback, self.add_errback = joining.add_callback, joining.add_errback


class _Assignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """`balance.share` as kafka-python wants it: cooperative, in two rounds, because a partition is given only once its owner let go."""

    name = "understudy"

    def __init__(self, member: KafkaSubscription) -> None:
        self._member = member

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> ConsumerProtocolSubscription:
        owned, working, busy, declined = self._member.says()
        said = {"working": sorted(working), "busy": busy, "declined": sorted(declined)}
        return ConsumerProtocolSubscription(
            version=1,
            topics=sorted(topics),
            user_data=json.dumps(said).encode(),
            owned_partitions=[
                ConsumerProtocolSubscription.TopicPartition(topic=topic, partitions=numbers)
                for topic, numbers in _by_topic(owned)
            ],
        )

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, ConsumerProtocolAssignment]:
        said = {member.member_id: _member(member.metadata) for member in members}
        topics = {topic for member in said.values() for topic in member.topics}
        target = share(said, [(t, number) for t in topics for number in cluster.partitions_for_topic(t) or ()])
        owner = owners(said)
        return {
            name: ConsumerProtocolAssignment(
                version=1,
                assigned_partitions=_by_topic(p for p in wanted if owner.get(p, name) == name),
                user_data=str(len(said)).encode(),
            )
            for name, wanted in target.items()
        }

    def on_assignment(self, assignment: ConsumerProtocolAssignment, generation: int) -> None:
        self._member.shared_out(int(assignment.user_data or 1))


def close_producer(producer: KafkaProducer) -> None:
    """Even when what it still holds cannot be sent any more."""
    with contextlib.suppress(trouble.KafkaError):
        producer.close(timeout=1)


def _member(metadata: ConsumerProtocolSubscription) -> Member:
    said = json.loads(metadata.user_data)
    return Member(
        topics=frozenset(metadata.topics),
        owned=frozenset((each.topic, number) for each in metadata.owned_partitions for number in each.partitions),
        working=frozenset((topic, number) for topic, number in said["working"]),
        busy=said["busy"],
        declined=frozenset((topic, number) for topic, number in said["declined"]),
    )


def _by_topic(partitions: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    grouped: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        grouped.setdefault(topic, []).append(number)
    return list(grouped.items())
