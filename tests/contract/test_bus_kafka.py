"""The Kafka bus keeps the bus contract on a real broker, and what only it can promise."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import kafka_broker
import pytest
from bus_contract import TOPIC, BusContract, closed, drain, reasons, request, run_of, runs_on, taken, training
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError

from understudy.belt.bus import Bus, Fenced, Record, Subscription
from understudy.belt.bus.connect import connect as connect_bus
from understudy.belt.bus.connect import security
from understudy.belt.bus.kafka import KafkaBus, KafkaSubscription
from understudy.belt.bus.kafka_member import FULL
from understudy.belt.contracts import Progress, decode
from understudy.belt.topics import TABLE
from understudy.errors import Fatal, Transient
from understudy.settings import Settings

pytestmark = pytest.mark.kafka
NAMED = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
SESSION = 6.0 if NAMED else 2.0
"""Seconds; a broker that is not ours allows no less than six."""
needs_own_broker = pytest.mark.skipif(kafka_broker.home() is None, reason="needs KAFKA_HOME, an unpacked Apache Kafka")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real broker."""
    with kafka_broker.any_broker(tmp_path_factory.mktemp("kafka") / "broker") as found:
        yield found


@pytest.fixture
def connect(servers: str) -> Iterator[Callable[[], KafkaBus]]:
    """Opens connections to topics of this test's own."""
    prefix, buses, members = f"test-{uuid.uuid4().hex[:8]}-", [], []

    class Tracked(KafkaBus):
        def subscribe(self, group: str, topics: Sequence[str], member: str) -> KafkaSubscription:
            members.append(super().subscribe(group, topics, member))
            return members[-1]

    def open_one() -> KafkaBus:
        buses.append(Tracked(servers, prefix=prefix, session=SESSION, poll_interval=SESSION, busy=0.5))
        return buses[-1]

    yield open_one
    for member in members:  # those that died in a test too: their threads would go on until the end of the suite
        with contextlib.suppress(KafkaTimeoutError):
            member._producer.close(timeout=0)
        member._consumer.close(autocommit=False, timeout_ms=100)
    for bus in buses:
        bus.close()
    with contextlib.suppress(KafkaError):  # thousands of partitions would make the broker slower from test to test
        admin = KafkaAdminClient(bootstrap_servers=servers)
        admin.delete_topics([prefix + topic.name for topic in TABLE])
        admin.close()


class TestKafka(BusContract):
    session = SESSION
    kills = 5
    counted = 2  # a transaction leaves a mark beside each message
    dial = "__import__('understudy.belt.bus.kafka').belt.bus.kafka.KafkaBus(**{where})"

    def where(self, bus: Bus) -> str:
        assert isinstance(bus, KafkaBus)
        return repr({"servers": bus.servers, "prefix": bus.prefix})

    def silence(self, member: Subscription) -> None:
        assert isinstance(member, KafkaSubscription)
        member._consumer._coordinator._close_heartbeat()

    def snatch(self, member: Subscription, record: Record) -> None:
        assert isinstance(member, KafkaSubscription)
        lost = TopicPartition(member._bus.prefix + record.topic, record.partition)
        # As kafka-python does it when another member got it.
        member._consumer._subscription.assign_from_subscribed(sorted(member._consumer.assignment() - {lost}))
        member.on_partitions_revoked({lost})

    def settled(self, members: list[Subscription]) -> bool:
        assigned = [len(member._consumer.assignment()) for member in members if isinstance(member, KafkaSubscription)]
        return min(assigned) > 0 and sum(assigned) == 12

    def put(self, bus: Bus, topic: str, value: bytes) -> None:
        assert isinstance(bus, KafkaBus)
        producer = KafkaProducer(bootstrap_servers=bus.servers)
        producer.send(bus.prefix + topic, value).get(10)
        producer.close()


def test_two_processes_of_one_name_are_told_apart(connect: Callable[[], KafkaBus]) -> None:
    first = connect().subscribe("datagen", [TOPIC], "same")
    first.poll(1)
    second = connect().subscribe("datagen", [TOPIC], "same")
    second.poll(1)
    connect().publish(request("a"))
    assert first.poll(1) is None
    with pytest.raises(Fatal, match="UNDERSTUDY_MEMBER"):
        first.poll(1)
    assert run_of(taken(second)) == "a"


@pytest.mark.parametrize("went_through", [True, False])
def test_a_commit_whose_outcome_is_open_is_settled(
    went_through: bool, connect: Callable[[], KafkaBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = connect()
    bus.publish(request("a"))
    member = bus.subscribe("datagen", [TOPIC], "m")
    record, outputs = taken(member), [closed("a")]
    commit = member._producer.commit_transaction

    def no_answer() -> None:
        if went_through:
            commit()
        raise KafkaTimeoutError("the answer was lost")

    monkeypatch.setattr(member._producer, "commit_transaction", no_answer)
    if went_through:
        member.commit(record, outputs)
    else:
        with pytest.raises(Transient):
            member.commit(record, outputs)
        member.commit(record, outputs)
    assert reasons(bus) == ["x"]
    assert bus.lag("datagen")[TOPIC] == 0


def test_topics_are_made_from_the_table(servers: str, connect: Callable[[], KafkaBus]) -> None:
    bus, admin = connect(), KafkaAdminClient(bootstrap_servers=servers)
    made = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
    assert {bus.prefix + topic.name: topic.partitions for topic in TABLE}.items() <= made.items()
    names = ("run-requested", "progress", "dead-letters")
    said = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, bus.prefix + name) for name in names])
    admin.close()
    configs = [(said["topic"][bus.prefix + name]) for name in names]
    wanted = ("cleanup.policy", "retention.ms", "max.message.bytes")
    assert [tuple(str(config[key]["value"]) for key in wanted) for config in configs] == [
        ("delete", "-1", str(64 * 1024)),
        ("compact,delete", str(7 * 24 * 3600 * 1000), str(64 * 1024)),
        ("delete", "-1", str(512 * 1024)),
    ]


def test_work_longer_than_the_poll_interval_causes_no_rebalance(connect: Callable[[], KafkaBus]) -> None:
    bus = connect()
    bus.publish(request("long"))
    member = bus.subscribe("datagen", [TOPIC], "m")
    record, before = taken(member), member._consumer.group_metadata()
    ends = time.monotonic() + 3 * SESSION  # three times the poll interval of these tests
    while time.monotonic() < ends:
        member.keep_alive()
        time.sleep(0.1)
    member.commit(record, [closed("long")])
    assert member._consumer.group_metadata() == before


def test_quick_work_is_not_held_up_by_saying_that_one_lives(connect: Callable[[], KafkaBus]) -> None:
    bus = connect()
    bus.publish(request("quick"))
    member = bus.subscribe("datagen", [TOPIC], "m")
    taken(member)
    took = []
    for _ in range(5):
        time.sleep(0.6)  # else it says nothing
        started = time.monotonic()
        member.keep_alive()
        took.append(time.monotonic() - started)
    assert min(took) < 0.04


def test_a_new_member_moves_no_more_than_it_gets(connect: Callable[[], KafkaBus]) -> None:
    first = connect().subscribe("datagen", [TOPIC], "one")
    first.poll(0.5)
    kept: list[set[int]] = [{p.partition for p in first._consumer.assignment()}]
    second = connect().subscribe("datagen", [TOPIC], "two")
    deadline = time.monotonic() + 20
    joined = threading.Thread(target=lambda: [second.poll(0.2) for _ in range(25)])
    joined.start()
    while joined.is_alive():
        first.poll(0.1)
        now = {p.partition for p in first._consumer.assignment()}
        if now != kept[-1]:
            kept.append(now)
    assert time.monotonic() < deadline
    assert [len(each) for each in kept] == [6, 3]
    assert len(second._consumer.assignment()) == 3
    assert kept[1] < kept[0]


def test_a_replay_of_a_compacted_topic_begins_near_its_end(connect: Callable[[], KafkaBus]) -> None:
    bus = connect()
    bus.publish(*(Progress(run="r", station="trainer", step=str(number)) for number in range(1500)))
    steps = [decode(record.value).step for record in bus.replay(["progress"]) if record]  # type: ignore[union-attr]
    assert steps == [str(number) for number in range(500, 1500)]


def test_lag_downloads_nothing_and_is_exact_without_transactions(
    connect: Callable[[], KafkaBus], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = connect()
    member = bus.subscribe("datagen", [TOPIC], "m")
    bus.publish(*(request(f"r{number}") for number in range(50)))
    for _ in range(3):
        member.commit(taken(member))
    monkeypatch.delattr(KafkaBus, "consumer")
    assert bus.lag("datagen") == {TOPIC: 47}


def test_marks_that_were_seen_are_passed_with_the_commit(connect: Callable[[], KafkaBus]) -> None:
    bus = connect()
    maker, reader = bus.subscribe("datagen", [TOPIC], "m"), bus.subscribe("evaluator", ["run-closed"], "m")
    bus.publish(request("a"))
    maker.commit(taken(maker), [closed("a")])
    reader.commit(taken(reader))
    assert bus.lag("evaluator") == {"run-closed": 0}


def test_of_a_deep_partition_only_so_much_is_held_back(connect: Callable[[], KafkaBus]) -> None:
    bus, (deep, *_), (aside, *_) = connect(), islice(runs_on(0), 1), islice(runs_on(1), 1)
    bus.publish(*(request(deep) for _ in range(5000)))
    member = bus.subscribe("datagen", [TOPIC], "m")
    records = [taken(member)]
    for _ in range(20):
        assert member.poll(0.05) is None
        assert sum(map(len, member._heads.values())) < FULL + 1000
    bus.publish(request(aside))
    records.append(taken(member, 2))
    assert [run_of(record) for record in records] == [deep, aside]
    for record in records:
        member.commit(record)
    for offset in range(1, 250):
        record = taken(member)
        assert record.offset == offset
        member.commit(record)


def test_a_transaction_that_hangs_holds_up_its_partition_only(connect: Callable[[], KafkaBus]) -> None:
    bus = connect()
    hanging = bus.producer("hanging")
    hanging.begin_transaction()
    hanging.send(**bus.outgoing(training("hangs", 0))).get(10)
    bus.publish(*(training("a", index) for index in range(12)))
    member = bus.subscribe("trainer", ["training-requested"], "m")
    member.commit(taken(member))
    started = time.monotonic()
    got = [taken(member) for _ in range(10)]
    assert time.monotonic() - started < 1  # not a tenth of a second for each
    hanging.commit_transaction()
    hanging.close()
    for record in got:
        member.commit(record)
    assert len(drain(member)) == 2
    assert bus.lag("trainer") == {"training-requested": 0}


def test_what_cannot_be_done_still_after_a_second_look_moves_nothing(connect: Callable[[], KafkaBus]) -> None:
    publisher, members = connect(), [connect().subscribe("datagen", [TOPIC], name) for name in ("one", "two")]
    publisher.publish(request("a"))
    deadline = time.monotonic() + 15
    declining: set[KafkaSubscription] = set()
    while len(declining) < 2 and time.monotonic() < deadline:
        for member in members:
            if record := member.poll(0.1):
                member.decline(record)
                declining.add(member)
    for _ in range(20):
        for member in members:
            member.poll(0.05)
    before = [member._consumer.group_metadata() for member in members]
    looks = 0
    for _ in range(20):
        for member in members:
            member.reconsider()
            if record := member.poll(0.05):
                member.decline(record)
                looks += 1
    assert looks >= 10
    assert [member._consumer.group_metadata() for member in members] == before


@needs_own_broker
def test_who_works_while_the_broker_is_away_goes_on_and_leaves_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = kafka_broker.home()
    assert home
    with kafka_broker.Broker(home, tmp_path / "broker") as broker:
        bus = KafkaBus(broker.servers, session=20)
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        record = taken(member)
        broker.kill()
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            member.keep_alive()
            member.furthest(record, 1)
            time.sleep(0.1)
        assert member.holds(record)
        assert sum("cannot reach its group" in each.message for each in caplog.records) == 1
        broker.start()
        member.commit(record, [closed("a")])
        assert reasons(bus) == ["x"]
        bus.publish(request("b"))
        taken(member)
        broker.send(signal.SIGSTOP)
        started = time.monotonic()
        member.close()
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("taken_over", [False, True])
def test_who_was_not_heard_for_a_session_keeps_its_work_unless_somebody_took_it(
    taken_over: bool, connect: Callable[[], KafkaBus]
) -> None:
    bus = connect()
    bus.publish(request("a"))
    silent = bus.subscribe("datagen", [TOPIC], "silent")
    record = taken(silent)
    silent._consumer._coordinator._close_heartbeat()
    other = connect().subscribe("datagen", [TOPIC], "other") if taken_over else None
    if other:
        assert run_of(taken(other, 4 * SESSION)) == "a"
    else:
        time.sleep(2 * SESSION)
    ends = time.monotonic() + 3 * SESSION
    while time.monotonic() < ends and silent.holds(record):
        silent.keep_alive()
        if other:
            other.keep_alive()
        time.sleep(0.1)
    assert silent.holds(record) is not taken_over
    if not taken_over:
        silent.commit(record, [closed("a")])
        assert reasons(bus) == ["x"]
        bus.publish(request("b"))
        assert [run_of(each) for each in drain(silent, 3)] == ["b"]


@needs_own_broker
def test_a_killed_broker_comes_back_and_everything_goes_on(tmp_path: Path) -> None:
    home = kafka_broker.home()
    assert home
    with kafka_broker.Broker(home, tmp_path / "broker") as broker:
        bus, sent = KafkaBus(broker.servers, session=SESSION), 60
        seen: list[Record] = []
        stop = threading.Event()

        def publish() -> None:
            for number in range(sent):
                bus.publish(request(f"r{number}"))
                time.sleep(0.05)

        def work() -> None:
            member = bus.subscribe("datagen", [TOPIC], "m")
            while not stop.is_set():
                with contextlib.suppress(Fenced, Transient):  # it comes again
                    if record := member.poll(0.2):
                        member.commit(record, [closed(run_of(record))])
            member.close()

        def follow() -> None:
            for record in bus.replay(["run-closed"], follow=True):
                if record:
                    seen.append(record)
                if stop.is_set():
                    return

        threads = [threading.Thread(target=each) for each in (publish, work, follow)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        broker.kill()
        time.sleep(1)
        broker.start()
        deadline = time.monotonic() + 60
        while len(seen) < sent and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert sorted(decode(record.value).run for record in seen) == sorted(f"r{number}" for number in range(sent))
        assert bus.lag("datagen")[TOPIC] == 0
        bus.close()


@needs_own_broker
def test_what_a_frozen_broker_does_not_take_is_given_back_and_the_next_message_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = kafka_broker.home()
    assert home
    monkeypatch.setattr("understudy.belt.bus.kafka.DELIVERY", 2.0)
    with kafka_broker.Broker(home, tmp_path / "broker") as broker:
        bus = KafkaBus(broker.servers)
        bus.publish(request("before"))
        broker.send(signal.SIGSTOP)
        with pytest.raises(Transient, match="could not be published"):
            bus.publish(request("meanwhile"))
        broker.send(signal.SIGCONT)
        bus.publish(request("after"))
        seen = [run_of(record) for record in bus.replay([TOPIC]) if record]
        assert set(seen) - {"meanwhile"} == {"before", "after"}
        bus.close()


@needs_own_broker
def test_sasl_and_tls_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = kafka_broker.home()
    assert home
    with kafka_broker.secured(home, tmp_path) as (servers, authority):
        for option, value in {
            "SECURITY_PROTOCOL": "SASL_SSL",
            "SSL_CAFILE": str(authority),
            "SASL_MECHANISM": "PLAIN",
            "SASL_PLAIN_USERNAME": "understudy",
            "SASL_PLAIN_PASSWORD": "right",
        }.items():
            monkeypatch.setenv(f"UNDERSTUDY_KAFKA_{option}", value)
        bus = connect_bus(Settings(bus=servers))
        bus.publish(request("a"))
        member = bus.subscribe("datagen", [TOPIC], "m")
        member.commit(taken(member), [closed("a")])
        assert reasons(bus) == ["x"]
        member.close()
        bus.close()
        monkeypatch.setenv("UNDERSTUDY_KAFKA_SASL_PLAIN_PASSWORD", "wrong")
        with pytest.raises(Fatal, match=r"Invalid username or password|hangs up may mean the user or the password"):
            KafkaBus(servers, security(os.environ), patience=4)


def test_nobody_there_is_said_with_the_address() -> None:
    with pytest.raises(Fatal, match=r"127\.0\.0\.1:9 .*REFUSED"):
        KafkaBus("127.0.0.1:9", patience=1)


def test_topics_of_an_older_version_are_refused_with_one_sentence(servers: str) -> None:
    prefix = f"test-{uuid.uuid4().hex[:8]}-"
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(f"{prefix}training-requested", 6, -1)])
    admin.close()
    with pytest.raises(
        Fatal, match=r"training-requested has 6 partitions where 12 are needed: .* UNDERSTUDY_BUS_PREFIX"
    ):
        KafkaBus(servers, prefix=prefix)
