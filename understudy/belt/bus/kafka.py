"""The bus on Apache Kafka: the same semantics as `embedded.py`, across machines.

- A message and the commit it answers are one transaction; a member that was replaced is fenced by Kafka.
- Work may take hours: meanwhile the member's partitions are paused and it goes on polling, so it keeps its place.
- Members are static: one that comes back under its name has its partitions at once, one that stays away loses them
  after `SESSION` seconds. Who gets what is `balance.py`.
- How often a record was handed out rides along with the committed offset, so that poison is known after a crash.

The only importer of `kafka`. Needs brokers of version 2.5 or newer. Does not choose settings (`connect.py`)."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kafka import (
    ConsumerRebalanceListener,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka import errors as trouble
from kafka.admin import MemberToRemove, NewTopic
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

from understudy.belt.bus import Fenced, Record
from understudy.belt.bus.balance import Member, owners, share
from understudy.belt.contracts import Message, encode
from understudy.belt.topics import TABLE, topic_of
from understudy.errors import Fatal, Invalid, Transient

SESSION = 15.0
"""Seconds after which a silent member's partitions go to the others."""
POLL_INTERVAL = 60.0
"""Seconds without a poll after which a member counts as stuck."""
BUSY = 5.0
"""Seconds of work after which the other partitions of a member are better with somebody else."""
PATIENCE = 60.0
"""Seconds to wait for brokers that do not answer."""
DELIVERY = 20.0
"""Seconds after which a message that the brokers do not take is given back to whoever published it."""
TRANSACTION = 30.0
"""Seconds after which the broker gives up a transaction whose producer died and never came back."""
PRODUCING = {"max_request_size": 2 * max(topic.max_bytes for topic in TABLE), "allow_auto_create_topics": False}
MOVED = (
    trouble.CommitFailedError,
    trouble.IllegalGenerationError,
    trouble.RebalanceInProgressError,
    trouble.UnknownMemberIdError,
)
"""The group is, or was, being shared out anew: ask again whose partition it is."""
REPLACED = (trouble.FencedInstanceIdError, trouble.ProducerFencedError)
"""Somebody else came under our name, or Kafka took us for dead."""


class KafkaBus:
    """The bus at the brokers `servers`; makes the topics that are missing.

    `security` are kafka-python's options for TLS and SASL. Raises `Fatal` when the brokers do not answer within `patience`
    seconds or do not let us in.
    """

    def __init__(
        self,
        servers: str,
        security: Mapping[str, Any] | None = None,
        prefix: str = "",
        *,
        patience: float = PATIENCE,
        session: float = SESSION,
        poll_interval: float = POLL_INTERVAL,
        busy: float = BUSY,
    ) -> None:
        self.servers, self.prefix = servers, prefix
        self.session, self.poll_interval, self.busy = session, poll_interval, busy
        self._common = {
            **(security or {}),
            "bootstrap_servers": servers.split(","),
            "reconnect_backoff_max_ms": 1000,
        }
        with self.explained(f"Kafka at {servers} did not let us in"):
            self._admin = self._reach(patience)
            self._create_topics()
        self._publisher: KafkaProducer | None = None
        self._lock = threading.Lock()

    def publish(self, message: Message) -> None:
        with self.explained(f"{topic_of(message).name} could not be published"):
            with self._lock:
                producer = self._publisher = self._publisher or self._new_publisher()
            try:
                producer.send(**self.outgoing(message)).get(timeout=DELIVERY)
            except trouble.KafkaTimeoutError:
                # Once a message that it had sent expires, kafka-python's producer may never send again.
                with self._lock:
                    self._publisher = None if self._publisher is producer else self._publisher
                _close(producer)
                raise

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> KafkaSubscription:
        with self.explained(f"{member} could not join"):
            return KafkaSubscription(self, group, topics, member)

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        with self.explained("The log could not be read"):
            partitions = self._partitions(self.prefix + topic for topic in topics)
            yield from self._read(dict.fromkeys(partitions, 0), follow)

    def lag(self, group: str) -> dict[str, int]:
        with self.explained(f"The lag of {group} could not be read"):
            committed = self._committed(self.prefix + group)
            partitions = self._partitions({partition.topic for partition in committed})
            starts = {p: committed[p].offset if p in committed else 0 for p in partitions}
            lags = Counter(dict.fromkeys((p.topic.removeprefix(self.prefix) for p in partitions), 0))
            lags.update(record.topic for record in self._read(starts) if record)
        return dict(lags)

    def close(self) -> None:
        if self._publisher:
            _close(self._publisher)
        self._admin.close()

    def consumer(self, **options: Any) -> KafkaConsumer:
        """A consumer that sees only what was committed."""
        return KafkaConsumer(
            **self._common,
            **options,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            allow_auto_create_topics=False,
        )

    def producer(self, transactional_id: str) -> KafkaProducer:
        """A producer whose messages appear together or not at all; ends what its predecessor of that id left open."""
        producer = KafkaProducer(
            **self._common,
            **PRODUCING,
            transactional_id=transactional_id,
            transaction_timeout_ms=int(TRANSACTION * 1000),
        )
        producer.init_transactions()
        return producer

    def _new_publisher(self) -> KafkaProducer:
        return KafkaProducer(
            **self._common,
            **PRODUCING,
            bootstrap_timeout_ms=int(DELIVERY * 1000),
            request_timeout_ms=int(DELIVERY / 2 * 1000),
            delivery_timeout_ms=int(DELIVERY * 1000),
        )

    def outgoing(self, message: Message) -> dict[str, Any]:
        """What a producer is to send for `message`."""
        return {
            "topic": self.prefix + topic_of(message).name,
            "key": message.key.encode(),
            "value": encode(message),
        }

    def incoming(self, record: Any, attempt: int = 1) -> Record:
        """What a consumer received."""
        topic = record.topic.removeprefix(self.prefix)
        return Record(topic, record.partition, record.offset, record.timestamp / 1000, record.value or b"", attempt)

    def forget(self, group: str, member: str) -> None:
        """Take a static member that ended in order out of its group, so that the others need not wait for its session."""
        self._admin.remove_group_members(group, [MemberToRemove(group_instance_id=member)])

    def _reach(self, patience: float) -> KafkaAdminClient:
        """A client once a broker answers. kafka-python tries again whatever the trouble is and says what it was in its log only."""
        heard = _Refusals()
        logging.getLogger("kafka").addHandler(heard)
        try:
            return KafkaAdminClient(**self._common, bootstrap_timeout_ms=int(patience * 1000))
        except trouble.KafkaTimeoutError as error:
            raise Fatal(
                f"No Kafka broker at {self.servers} took us in within {patience:.0f} s ({'; '.join(heard.reasons) or 'no answer'})",
                "Is it up and reachable from here? UNDERSTUDY_BUS names it; UNDERSTUDY_KAFKA_* say how to log in.",
            ) from error
        finally:
            logging.getLogger("kafka").removeHandler(heard)

    def _create_topics(self) -> None:
        there = set(self._admin.list_topics())
        missing = [
            NewTopic(
                self.prefix + topic.name,
                topic.partitions,
                -1,
                topic_configs={
                    "cleanup.policy": "compact,delete" if topic.compacted else "delete",
                    "retention.ms": str(-1 if topic.retention is None else topic.retention * 1000),
                    "max.message.bytes": str(topic.max_bytes),
                },
            )
            for topic in TABLE
            if self.prefix + topic.name not in there
        ]
        try:
            if missing:
                self._admin.create_topics(missing)
        except trouble.TopicAlreadyExistsError:
            pass  # another service was a moment faster
        self._admin.wait_for_topics([self.prefix + topic.name for topic in TABLE], timeout_ms=int(PATIENCE * 1000))

    def _read(self, starts: Mapping[TopicPartition, int], follow: bool = False) -> Iterator[Record | None]:
        """Records from these offsets on; ends, and yields None, as `replay` does.

        Offsets alone do not tell how many there are: a transaction leaves marks among them.
        """
        with contextlib.closing(self.consumer()) as consumer:
            consumer.assign(starts)
            ends = consumer.end_offsets(starts)
            for partition, first in consumer.beginning_offsets(starts).items():
                consumer.seek(partition, max(first, starts[partition]))
            behind = {partition: end for partition, end in ends.items() if consumer.position(partition) < end}
            while True:
                polled = consumer.poll(timeout_ms=200, max_records=1000) if behind or follow else {}
                for record in (record for records in polled.values() for record in records):
                    yield self.incoming(record)
                behind = {partition: end for partition, end in behind.items() if consumer.position(partition) < end}
                if not behind and not polled:
                    if not follow:
                        return
                    yield None

    def _committed(self, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
        """What `group` has committed. On a broker that never had a group, the place for that is made only now."""
        deadline = time.monotonic() + DELIVERY
        while True:
            try:
                return dict(self._admin.list_group_offsets({group: None})[group])
            except (
                trouble.CoordinatorNotAvailableError,
                trouble.NotCoordinatorError,
                trouble.CoordinatorLoadInProgressError,
            ):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _partitions(self, names: Iterable[str]) -> list[TopicPartition]:
        described = self._admin.describe_topics(sorted(names))
        return [
            TopicPartition(topic["name"], each["partition_index"])
            for topic in described
            for each in topic["partitions"]
        ]

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn what kafka-python raises into our errors."""
        try:
            yield
        except (
            trouble.AuthorizationError,
            trouble.SaslAuthenticationFailedError,
            trouble.KafkaConfigurationError,
        ) as error:
            raise Fatal(
                f"{what}: {error}", "See UNDERSTUDY_BUS and UNDERSTUDY_KAFKA_*, and the cluster's ACLs."
            ) from error
        except trouble.MessageSizeTooLargeError as error:
            raise Invalid(f"{what}: {error}", "`max_bytes` of its topic bounds a message.") from error
        except trouble.KafkaError as error:
            raise Transient(f"{what}: {error}") from error


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of a group; see `bus.Subscription`."""

    def __init__(self, bus: KafkaBus, group: str, topics: Sequence[str], member: str) -> None:
        self._bus = bus
        self._group = bus.prefix + group
        self._member = member
        self._hand: tuple[TopicPartition, int] | None = None
        """Partition and offset of the record that is being worked on."""
        self._lost = False
        """Whether its partition went to another member."""
        self._replaced = False
        self._taken = self._polled = 0.0
        self._members = 1
        self._told = False
        self._positions: dict[TopicPartition, OffsetAndMetadata] = {}
        """What is committed of the partitions we have, as far as we asked."""
        self._producer = bus.producer(f"{self._group}.{self._member}")
        self._consumer = bus.consumer(
            group_id=self._group,
            group_instance_id=member,
            partition_assignment_strategy=[_Assignor(self)],
            max_poll_records=1,
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
        with self._bus.explained(f"{self._group} could not be polled"):
            try:
                self._put_back()
                polled = self._consumer.poll(timeout_ms=int(timeout * 1000))
                for partition, (record, *_) in polled.items():
                    self._hand, self._lost = (partition, record.offset), False
                    self._taken = self._polled = time.monotonic()
                    before = self._position(partition)
                    attempt = 1 + (int(before.metadata or 0) if before.offset == record.offset else 0)
                    self._commit(partition, record.offset, str(attempt))
                    return self._bus.incoming(record, attempt)
                self._pass_marks()
            except MOVED:  # the next poll puts back what is still ours
                pass
            except REPLACED:
                self._replaced = True
        return None

    def keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._polled >= 0.5:
            self._polled = now
            self._take_part()
        if self._lost or self._replaced:
            raise Fenced

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        partition = TopicPartition(self._bus.prefix + record.topic, record.partition)
        with self._bus.explained(f"{record.topic} could not be committed"):
            while True:
                if self._lost or self._replaced or self._hand != (partition, record.offset):
                    raise Fenced
                try:
                    if outputs:
                        self._transact(partition, record.offset + 1, outputs)
                    else:
                        self._commit(partition, record.offset + 1)
                    break
                except MOVED:
                    self._take_part()  # which tells whether the partition stays ours
                except REPLACED:
                    self._replaced = True
        self._hand = None
        self._ask_anew_if_told_otherwise()

    def close(self) -> None:
        _close(self._producer)
        self._consumer.close(autocommit=False, timeout_ms=5000)
        if not self._replaced:
            with contextlib.suppress(trouble.KafkaError):
                self._bus.forget(self._group, self._member)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if self._hand:
            self._consumer.pause(*assigned)

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._lost |= self._hand is not None and self._hand[0] in revoked
        for partition in revoked:
            self._positions.pop(partition, None)

    def says(self) -> tuple[set[TopicPartition], TopicPartition | None, bool]:
        """What the group is to know: the partitions we have, the one we work on, and whether we have done so for long."""
        self._told = self._busy()
        return set(self._consumer.assignment()), self._hand[0] if self._hand else None, self._told

    def shared_out(self, members: int) -> None:
        """The group has so many members now."""
        self._members = members

    def _take_part(self) -> None:
        """Poll, so that the group sees us alive, without receiving anything; learn what became of the record in hand."""
        with self._bus.explained(f"{self._group} could not be polled"):
            try:
                self._ask_anew_if_told_otherwise()
                # Not in `poll`: quick work need not stop the fetching.
                self._consumer.pause(*self._consumer.assignment())
                self._consumer.poll(timeout_ms=50)
                # kafka-python does not say that somebody came under our name: a commit does.
                if self._hand and not self._lost:
                    self._commit(*self._hand, self._position(self._hand[0]).metadata)
            except MOVED:
                pass
            except REPLACED:
                self._replaced = True

    def _busy(self) -> bool:
        return self._hand is not None and time.monotonic() - self._taken > self._bus.busy

    def _ask_anew_if_told_otherwise(self) -> None:
        """Have the partitions shared out again once we became busy, or free."""
        if self._members > 1 and self._busy() != self._told:
            self._consumer._coordinator.request_rejoin()  # not public, but there is no other way to say it

    def _put_back(self) -> None:
        """Of a record that was not committed: it is handed out again, if its partition is still ours."""
        if self._hand and not self._lost and self._hand[0] in self._consumer.assignment():
            self._consumer.seek(*self._hand)
        self._hand = None
        self._consumer.resume(*self._consumer.paused())

    def _position(self, partition: TopicPartition) -> OffsetAndMetadata:
        """What the group committed; offset -1 when nothing."""
        if partition not in self._positions:
            found = self._consumer.committed(partition, metadata=True)
            self._positions[partition] = found or OffsetAndMetadata(-1)
        return self._positions[partition]

    def _commit(self, partition: TopicPartition, offset: int, metadata: str = "") -> None:
        position = OffsetAndMetadata(offset, metadata)
        self._consumer.commit({partition: position}, timeout_ms=int(PATIENCE * 1000))
        self._positions[partition] = position

    def _transact(self, partition: TopicPartition, offset: int, outputs: Sequence[Message]) -> None:
        position = OffsetAndMetadata(offset)
        try:
            self._producer.begin_transaction()
            for message in outputs:
                self._producer.send(**self._bus.outgoing(message))
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
            _close(failed)
            self._positions.pop(partition, None)
            if self._position(partition).offset != offset:
                raise
        self._positions[partition] = position

    def _pass_marks(self) -> None:
        """Commit past what transactions leave in the log, so that a group that has done everything has no lag."""
        for partition in self._consumer.assignment():
            at = self._consumer.position(partition, timeout_ms=100)
            if at is not None and at > self._position(partition).offset:
                self._commit(partition, at)


class _Assignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """`balance.share` as kafka-python wants it: cooperative, in two rounds, because a partition is given only once its owner let go."""

    name = "understudy"

    def __init__(self, member: KafkaSubscription) -> None:
        self._member = member

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> ConsumerProtocolSubscription:
        owned, working, busy = self._member.says()
        return ConsumerProtocolSubscription(
            version=1,
            topics=sorted(topics),
            user_data=json.dumps({"working": working, "busy": busy}).encode(),
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


class _Refusals(logging.Handler):
    """Remembers why connections failed, each reason once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reasons: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if "connection to" in (said := record.getMessage()):
            self.reasons[said.split("failed: ", 1)[-1].split(" (backoff")[0]] = None


def _close(producer: KafkaProducer) -> None:
    """Even when what it still holds cannot be sent any more."""
    with contextlib.suppress(trouble.KafkaError):
        producer.close(timeout=2)


def _member(metadata: ConsumerProtocolSubscription) -> Member:
    said = json.loads(metadata.user_data)
    return Member(
        topics=frozenset(metadata.topics),
        owned=frozenset((each.topic, number) for each in metadata.owned_partitions for number in each.partitions),
        working=tuple(said["working"]) if said["working"] else None,
        busy=said["busy"],
    )


def _by_topic(partitions: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    grouped: dict[str, list[int]] = {}
    for topic, number in sorted(partitions):
        grouped.setdefault(topic, []).append(number)
    return list(grouped.items())
