"""The embedded bus: one SQLite file, safe for several processes and threads, with the semantics the services rely on
from Kafka.

A record belongs to a topic, a partition and an offset; a group remembers per partition how far it is. A member leases a
partition only while it has that partition's next record in hand. So order per key holds, a slow member stalls nothing
but the partitions it works on, and there is no rebalance: what a crashed member held is free again when its lease runs
out, or at once when its successor of the same name joins.

Durable against the death of any process; the last moments before a power cut may be lost (`synchronous=NORMAL`), as
with Kafka's defaults. Does not cross machines: that is what Kafka is for."""

from __future__ import annotations

import contextlib
import heapq
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from understudy.belt.bus import Fenced, Record, packed
from understudy.belt.contracts import Message
from understudy.belt.topics import BY_NAME, topic_of
from understudy.errors import Fatal, Transient, disk_full

LEASE = 15.0
"""Seconds after which a silent member's partitions are free again."""
TICK = 0.01
"""Seconds between looks at the file's change counter while waiting: the latency of a message, in the worst case."""
BATCH = 500
"""Records of one topic that a replay reads at once."""
SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    at REAL NOT NULL, value BLOB NOT NULL,
    key TEXT, -- on compacted topics only
    until REAL, -- on topics with a retention only
    UNIQUE (topic, partition, offset)
);
CREATE INDEX IF NOT EXISTS in_order ON messages (topic, id);
CREATE INDEX IF NOT EXISTS latest ON messages (topic, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS expiring ON messages (until) WHERE until IS NOT NULL;
CREATE TABLE IF NOT EXISTS heads (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (
    grp TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    committed INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0, furthest INTEGER NOT NULL DEFAULT 0, -- of the record at `committed`
    member TEXT, incarnation TEXT, renewed REAL, expires REAL, -- the lease
    PRIMARY KEY (grp, topic, partition)
) WITHOUT ROWID;
"""
FREE = "member = NULL, incarnation = NULL, renewed = NULL, expires = NULL"
UNCOUNTED = "deliveries = MAX(deliveries - 1, 0)"

log = logging.getLogger(__name__)


class EmbeddedBus:
    """The bus in the file at `path`, created when missing.

    Raises `Fatal` when the file cannot be used or the disk is full, `Transient` when it stays locked.
    """

    def __init__(self, path: Path, *, lease: float = LEASE, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._lease = lease
        # Of the leases. One for all processes of a machine, and nobody sets it; it begins anew when the machine does.
        self._clock = clock
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._guard = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_full(error, path) or Fatal(
                f"Cannot create the folder {path.parent}: {error.strerror}", "Choose another data folder."
            ) from error
        with self._trouble():
            version = self._connection().execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise Fatal(
                f"{path} was written by a newer Understudy (version {version})",
                "Upgrade, or choose another data folder.",
            )
        if 0 < version < SCHEMA_VERSION:
            raise Fatal(
                f"{path} was written by an Understudy before version 0.3",
                "Choose another data folder with --data, or remove this one.",
            )
        if version == 0:
            with self._transaction() as db:
                for statement in SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def publish(self, *messages: Message) -> None:
        with self._transaction() as db:
            self._append(db, messages)

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> EmbeddedSubscription:
        with self._transaction() as db:
            for name in topics:
                for partition in range(BY_NAME[name].partitions):
                    db.execute(
                        "INSERT OR IGNORE INTO positions (grp, topic, partition) VALUES (?, ?, ?)",
                        (group, name, partition),
                    )
            # What my name had in hand was my predecessor's, whose delivery counts: it may have died of it.
            db.execute(f"UPDATE positions SET {FREE} WHERE grp = ? AND member = ?", (group, member))
        return EmbeddedSubscription(self, group, topics, member)

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        seen = 0
        while True:
            with self._trouble():
                version = self._version()
                end = self._connection().execute("SELECT COALESCE(MAX(id), 0) FROM messages").fetchone()[0]
            # Everything up to `end` is there, so that what is read topic by topic can be merged into one order.
            rows = heapq.merge(*(self._between(topic, seen, end) for topic in topics), key=itemgetter(0))
            for _, topic, partition, offset, at, value in rows:
                yield Record(topic, partition, offset, at, value)
            if not follow:
                return
            seen = end
            yield None
            self._wait_for_change(version, 0.05)

    def lag(self, group: str) -> dict[str, int]:
        # By the numbers, not by counting rows: only what was compacted in between is counted although it is gone.
        first = (
            "SELECT MIN(offset) FROM messages m WHERE m.topic = p.topic AND m.partition = p.partition"
            " AND offset >= committed"
        )
        query = (
            f"SELECT topic, SUM(COALESCE(next - ({first}), 0)) FROM positions p"
            " LEFT JOIN heads USING (topic, partition) WHERE grp = ? GROUP BY topic"
        )
        with self._trouble():
            return dict(self._connection().execute(query, (group,)).fetchall())

    def close(self) -> None:
        with self._guard:
            for connection in self._connections.values():
                connection.close()

    def _append(self, db: sqlite3.Connection, messages: Sequence[Message]) -> None:
        now = time.time()
        for message in messages:
            topic, value = topic_of(message), packed(message)
            partition = message.place(topic.partitions)
            if topic.retention is not None:
                db.execute("DELETE FROM messages WHERE until < ?", (now,))
            if topic.compacted:
                db.execute("DELETE FROM messages WHERE topic = ? AND key = ?", (topic.name, message.key))
            offset = db.execute(
                "INSERT INTO heads VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET next = next + 1 RETURNING next - 1",
                (topic.name, partition),
            ).fetchone()[0]
            db.execute(
                "INSERT INTO messages (topic, partition, offset, at, value, key, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    topic.name,
                    partition,
                    offset,
                    now,
                    value,
                    message.key if topic.compacted else None,
                    None if topic.retention is None else now + topic.retention,
                ),
            )

    def _between(self, topic: str, seen: int, end: int) -> Iterator[tuple[Any, ...]]:
        query = (
            "SELECT id, topic, partition, offset, at, value FROM messages"
            f" WHERE topic = ? AND id > ? AND id <= ? ORDER BY id LIMIT {BATCH}"
        )
        while True:
            with self._trouble():
                rows = self._connection().execute(query, (topic, seen, end)).fetchall()
            yield from rows
            if len(rows) < BATCH:
                return
            seen = rows[-1][0]

    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        thread = threading.current_thread()
        connection = self._connections.get(thread)
        if connection is None:
            # Autocommit, so that transactions are where the code says; closed from another thread.
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            _to_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            with self._guard:
                # Those of threads that ended, else a process with many short threads runs out of descriptors.
                for ended in [each for each in self._connections if not each.is_alive()]:
                    self._connections.pop(ended).close()
                self._connections[thread] = connection
        return connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._trouble():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if full := disk_full(error, self._path):
                raise full from error
            if "locked" in str(error) or "busy" in str(error):
                raise Transient(f"The bus file {self._path} stays locked: {error}") from error
            raise Fatal(
                f"The bus file {self._path} cannot be used: {error}",
                "Choose another data folder, or remove the damaged file.",
            ) from error

    def _version(self) -> int:
        """Changes when another connection has written."""
        version: int = self._connection().execute("PRAGMA data_version").fetchone()[0]
        return version

    def _wait_for_change(self, version: int, seconds: float) -> None:
        """Return when another connection has written since `version`, or after `seconds`."""
        deadline = time.monotonic() + seconds
        with self._trouble():
            while self._version() == version and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(TICK, left))


class EmbeddedSubscription:
    """One member of a group; see `bus.Subscription`."""

    def __init__(self, bus: EmbeddedBus, group: str, topics: Sequence[str], member: str) -> None:
        self._bus = bus
        self._group = group
        self._topics = tuple(topics)
        self._member = member
        self._incarnation = secrets.token_hex(8)
        self._owed: list[tuple[str, int]] = []
        """Places that were given back and are not free yet."""
        self._hand: dict[tuple[str, int], Record] = {}
        """As they were handed out: one that is taken again is another one."""
        """Partition -> offset of the record in hand."""
        self._declined: dict[tuple[str, int], int] = {}
        """Partition -> offset of its next record, when this member cannot do that."""
        self._renewed = 0.0

    def poll(self, timeout: float) -> Record | None:
        deadline = time.monotonic() + timeout
        self._pay()
        while True:
            with self._bus._trouble():
                version = self._bus._version()
            if record := self._take():
                return record
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            # At least that often, because a lease runs out without a write.
            self._bus._wait_for_change(version, min(left, 0.5))

    def keep_alive(self) -> None:
        if not self._hand or self._bus._clock() - self._renewed < self._bus._lease / 5:
            return
        try:
            with self._bus._transaction() as db:
                now = self._bus._clock()
                ours = db.execute(
                    "UPDATE positions SET renewed = ?, expires = ? WHERE grp = ? AND incarnation = ?"
                    " RETURNING topic, partition",
                    (now, now + self._bus._lease, self._group, self._incarnation),
                ).fetchall()
        except Transient as error:  # tried again at the next call
            log.warning("%s", error)
            return
        self._renewed = now
        self._hand = {place: self._hand[place] for place in ours if place in self._hand}

    def holds(self, record: Record) -> bool:
        return self._hand.get((record.topic, record.partition)) is record

    def furthest(self, record: Record, mark: int) -> None:
        further = "deliveries = CASE WHEN furthest < ? THEN 0 ELSE deliveries END, furthest = MAX(furthest, ?)"
        self._update(record, further, mark, mark)

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        with self._bus._transaction() as db:
            done = f"committed = ?, deliveries = 0, furthest = 0, {FREE}"
            if not self._in(db, record, done, record.offset + 1):
                self._drop(record)
                raise Fenced
            self._bus._append(db, outputs)
        self._drop(record)

    def give_back(self, record: Record) -> None:
        if self.holds(record):
            self._drop(record)
            self._owed.append((record.topic, record.partition))
            self._pay()

    def _pay(self) -> None:
        """Free what was given back. A file that stays locked keeps it, until the next call."""
        while self._owed:
            with self._bus._transaction() as db:
                db.execute(
                    f"UPDATE positions SET {UNCOUNTED}, {FREE} WHERE grp = ? AND topic = ? AND partition = ? AND incarnation = ?",
                    (self._group, *self._owed[-1], self._incarnation),
                )
            self._owed.pop()

    def decline(self, record: Record) -> None:
        self._declined[record.topic, record.partition] = record.offset
        self.give_back(record)

    def reconsider(self) -> None:
        self._declined.clear()

    def close(self) -> None:
        self._hand.clear()
        with self._bus._transaction() as db:
            db.execute(
                f"UPDATE positions SET {UNCOUNTED}, {FREE} WHERE grp = ? AND incarnation = ?",
                (self._group, self._incarnation),
            )

    def _drop(self, record: Record) -> None:
        if self.holds(record):
            del self._hand[record.topic, record.partition]

    def _take(self) -> Record | None:
        """Lease the partition with the oldest next record that nobody works on."""
        with self._bus._trouble():
            if self._candidate(self._bus._connection(), self._bus._clock()) is None:  # reading blocks nobody
                return None
        with self._bus._transaction() as db:
            # Read within: of two that wait for each other here, the second must not find the first one's lease to be
            # of the future.
            now = self._bus._clock()
            row = self._candidate(db, now)
            if row is None:
                return None
            topic, partition, offset, at, value, deliveries, furthest = row
            db.execute(
                "UPDATE positions SET deliveries = deliveries + 1, member = ?, incarnation = ?, renewed = ?, expires = ?"
                " WHERE grp = ? AND topic = ? AND partition = ?",
                (self._member, self._incarnation, now, now + self._bus._lease, self._group, topic, partition),
            )
        if not self._hand:
            self._renewed = now
        record = Record(topic, partition, offset, at, value, deliveries + 1, furthest)
        self._hand[topic, partition] = record
        return record

    def _candidate(self, db: sqlite3.Connection, now: float) -> tuple[str, int, int, float, bytes, int, int] | None:
        marks = ",".join("?" * len(self._topics))
        # Not `m.offset = p.committed`: what lay there may have expired. A lease of the future is of before a reboot.
        rows = db.execute(
            "SELECT m.topic, m.partition, m.offset, m.at, m.value, p.deliveries, p.furthest"
            " FROM positions p JOIN messages m ON m.id = ("
            "  SELECT id FROM messages n WHERE n.topic = p.topic AND n.partition = p.partition"
            "  AND n.offset >= p.committed ORDER BY n.offset LIMIT 1)"
            f" WHERE p.grp = ? AND p.topic IN ({marks}) AND (p.incarnation IS NULL"
            "  OR p.incarnation != ? AND NOT ? BETWEEN p.renewed AND p.expires)"
            " ORDER BY m.id",
            (self._group, *self._topics, self._incarnation, now),
        )
        return next((row for row in rows.fetchall() if self._declined.get((row[0], row[1])) != row[2]), None)

    def _update(self, record: Record, values: str, *parameters: object) -> None:
        with self._bus._transaction() as db:
            self._in(db, record, values, *parameters)

    def _in(self, db: sqlite3.Connection, record: Record, values: str, *parameters: object) -> bool:
        """Set these of the record's position; whether it was ours."""
        if not self.holds(record):
            return False
        done = db.execute(
            f"UPDATE positions SET {values} WHERE grp = ? AND topic = ? AND partition = ? AND incarnation = ?",
            (*parameters, self._group, record.topic, record.partition, self._incarnation),
        )
        return done.rowcount == 1


def _to_wal(connection: sqlite3.Connection, tries: int = 100) -> None:
    """Of several processes that open a new file at once one sets this; SQLite lets the others wait for nothing."""
    for left in reversed(range(tries)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not left or "locked" not in str(error):
                raise
            time.sleep(0.05)
