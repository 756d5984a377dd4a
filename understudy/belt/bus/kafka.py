"""The bus on Apache Kafka: the same semantics as `embedded.py`, across machines.

- A message and the commit it answers are one transaction; a member that was replaced is fenced by Kafka.
- Members are static: one that comes back under its name has its partitions at once, one that stays away loses them
  after `SESSION` seconds.
- Marks that transactions leave in the log have offsets too: offsets alone do not tell how many records there are.

Needs brokers of version 2.5 or newer. Only this module and `kafka_member.py`, what a member of a group does, know
`kafka`. Does not choose settings (`connect.py`)."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as trouble
from kafka.admin import MemberToRemove, NewTopic
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from understudy.belt.bus import Record, packed
from understudy.belt.bus.kafka_member import PATIENCE, KafkaSubscription, close_producer
from understudy.belt.contracts import Message
from understudy.belt.topics import BY_NAME, TABLE, topic_of
from understudy.errors import Fatal, Invalid, Transient

SESSION = 15.0
"""Seconds after which a silent member's partitions go to the others."""
POLL_INTERVAL = 60.0
"""Seconds without a poll after which a member counts as stuck."""
BUSY = 5.0
"""Seconds of work, without asking for more, after which the other partitions of a member are better with somebody else."""
DELIVERY = 20.0
"""Seconds after which a message that the brokers do not take is given back to whoever published it."""
TRANSACTION = 30.0
"""Seconds after which the broker gives up a transaction whose producer died and never came back."""
RECENT = 1000
"""Offsets before the end of each partition of a compacted topic at which a replay begins."""
log = logging.getLogger(__name__)

PRODUCING = {"max_request_size": 2 * max(topic.max_bytes for topic in TABLE), "allow_auto_create_topics": False}


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
            self._make_topics(patience)
        self._publisher: KafkaProducer | None = None
        self._lock = threading.Lock()

    def publish(self, *messages: Message) -> None:
        with self.explained(f"{', '.join({topic_of(each).name: 1 for each in messages})} could not be published"):
            outgoing = [self.outgoing(message) for message in messages]
            with self._lock:
                producer = self._publisher = self._publisher or self._new_publisher()
            try:
                for sent in [producer.send(**each) for each in outgoing]:
                    sent.get(timeout=DELIVERY)
            except trouble.KafkaTimeoutError:
                # Once a message that it had sent expires, kafka-python's producer may never send again.
                with self._lock:
                    self._publisher = None if self._publisher is producer else self._publisher
                close_producer(producer)
                raise

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> KafkaSubscription:
        with self.explained(f"{member} could not join"):
            return KafkaSubscription(self, group, topics, member)

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        with self.explained("The log could not be read"), contextlib.closing(self.consumer()) as consumer:
            partitions = self._partitions(self.prefix + topic for topic in topics)
            consumer.assign(partitions)
            behind = consumer.end_offsets(partitions)
            for partition, first in consumer.beginning_offsets(partitions).items():
                compacted = BY_NAME[partition.topic.removeprefix(self.prefix)].compacted
                consumer.seek(partition, max(first, behind[partition] - RECENT) if compacted else first)
            begun = True
            while True:
                # Of what was there when we began: more may come faster than it is read.
                behind = {partition: end for partition, end in behind.items() if consumer.position(partition) < end}
                if not behind and begun:
                    if not follow:
                        return
                    begun = False
                    yield None
                polled = consumer.poll(timeout_ms=200, max_records=1000)
                for record in (record for records in polled.values() for record in records):
                    yield self.incoming(record)
                if not polled and not begun:
                    yield None

    def lag(self, group: str) -> dict[str, int]:
        with self.explained(f"The lag of {group} could not be read"):
            committed = self._committed(self.prefix + group)
            partitions = self._partitions({partition.topic for partition in committed})
            ends, starts = self._offsets(partitions, OffsetSpec.LATEST), self._offsets(partitions, OffsetSpec.EARLIEST)
            lags: Counter[str] = Counter()
            for partition in partitions:
                done = max(starts[partition], committed[partition].offset if partition in committed else 0)
                lags[partition.topic.removeprefix(self.prefix)] += ends[partition] - done
        return dict(lags)

    def close(self) -> None:
        if self._publisher:
            close_producer(self._publisher)
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
        topic = topic_of(message)
        return {
            "topic": self.prefix + topic.name,
            "partition": message.place(topic.partitions),
            "key": message.key.encode(),  # by which Kafka compacts
            "value": packed(message),
        }

    def incoming(self, record: Any, delivery: int = 1, furthest: int = 0) -> Record:
        """What a consumer received."""
        topic, at = record.topic.removeprefix(self.prefix), record.timestamp / 1000
        return Record(topic, record.partition, record.offset, at, record.value or b"", delivery, furthest)

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
            # A broker answers a wrong password and hangs up; kafka-python loses the answer when both come at once.
            secret = "sasl_mechanism" in self._common
            hint = " A broker that only hangs up may mean the user or the password." if secret else ""
            raise Fatal(
                f"No Kafka broker at {self.servers} took us in within {patience:.0f} s ({'; '.join(heard.reasons) or 'no answer'})",
                f"Is it up and reachable from here? UNDERSTUDY_BUS names it; UNDERSTUDY_KAFKA_* say how to log in.{hint}",
            ) from error
        finally:
            logging.getLogger("kafka").removeHandler(heard)

    def _make_topics(self, patience: float) -> None:
        """A broker that is busy with many topics may answer late; asked again it goes on where it was."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return self._create_topics()
            except trouble.KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
                log.warning("the topics are not there yet: %s", error)
                time.sleep(0.5)

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
        found = Counter(partition.topic for partition in self._partitions(self.prefix + topic.name for topic in TABLE))
        for topic in TABLE:
            if found[self.prefix + topic.name] < topic.partitions:
                raise Fatal(
                    f"Topic {self.prefix + topic.name} has {found[self.prefix + topic.name]} partitions where {topic.partitions}"
                    " are needed: an Understudy before version 0.2 made it, or somebody else did",
                    "Choose another UNDERSTUDY_BUS_PREFIX, or delete the topics of that version.",
                )

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

    def _offsets(self, partitions: Iterable[TopicPartition], which: OffsetSpec) -> dict[TopicPartition, int]:
        asked = dict.fromkeys(partitions, which)
        found = self._admin.list_partition_offsets(asked, IsolationLevel.READ_COMMITTED) if asked else {}
        return {partition: each.offset for partition, each in found.items()}

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


class _Refusals(logging.Handler):
    """Remembers why connections failed, each reason once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reasons: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if "connection to" in (said := record.getMessage()):
            self.reasons[said.split("failed: ", 1)[-1].split(" (backoff")[0]] = None
