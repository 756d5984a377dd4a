"""The embedded bus: one SQLite file, safe for several processes and threads, with the semantics the services rely on
from Kafka.

A record belongs to a topic, a partition (by key) and an offset; a group remembers per partition how far it is. A
member leases a partition only while it works on that partition's next record. So order per key holds, a slow member
stalls nothing but the key it works on, and there is no rebalance: what a crashed member held is free again when its
lease runs out, or at once for its own successor of the same name.

Durable against the death of any process; the last moments before a power cut may be lost (`synchronous=NORMAL`), as
with Kafka's defaults. Does not cross machines: that is what Kafka is for."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from understudy.belt.bus import Fenced, Record
from understudy.belt.contracts import Message, encode
from understudy.belt.topics import BY_NAME, topic_of
from understudy.errors import Fatal, Transient, disk_full

LEASE = 15.0
"""Seconds after which a silent member's partition is free again."""
TICK = 0.01
"""Seconds between looks at the file's change counter while waiting: the latency of a message, in the worst case."""
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    at REAL NOT NULL, value BLOB NOT NULL,
    UNIQUE (topic, partition, offset)
);
CREATE TABLE IF NOT EXISTS heads (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (
    grp TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    committed INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    member TEXT, incarnation TEXT, expires REAL,
    PRIMARY KEY (grp, topic, partition)
) WITHOUT ROWID;
"""


class EmbeddedBus:
    """The bus in the file at `path`, created when missing.

    Raises `Fatal` when the file cannot be used or the disk is full, `Transient` when it stays locked.
    """

    def __init__(self, path: Path, *, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._lease = lease
        self._clock = clock
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_full(error, path) or Fatal(
                f"Cannot create the folder {path.parent}: {error.strerror}", "Choose another data folder."
            ) from error
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise Fatal(
                    f"{path} was written by a newer Understudy (version {version})",
                    "Upgrade, or choose another data folder.",
                )
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._forget_expired(db)

    def publish(self, message: Message) -> None:
        with self._transaction() as db:
            self._append(db, [message])

    def subscribe(self, group: str, topics: Sequence[str], member: str) -> EmbeddedSubscription:
        with self._transaction() as db:
            for name in topics:
                for partition in range(BY_NAME[name].partitions):
                    db.execute(
                        "INSERT OR IGNORE INTO positions (grp, topic, partition) VALUES (?, ?, ?)",
                        (group, name, partition),
                    )
        return EmbeddedSubscription(self, group, topics, member)

    def replay(self, topics: Sequence[str], follow: bool = False) -> Iterator[Record | None]:
        marks = ",".join("?" * len(topics))
        query = f"SELECT id, topic, partition, offset, at, value FROM messages WHERE id > ? AND topic IN ({marks}) ORDER BY id LIMIT 500"
        seen = 0
        while True:
            with self._trouble():
                rows = self._connection().execute(query, (seen, *topics)).fetchall()
            for identity, topic, partition, offset, at, value in rows:
                yield Record(topic, partition, offset, at, value)
                seen = identity
            if not rows:
                if not follow:
                    return
                yield None
                self._wait_for_change(0.05)

    def lag(self, group: str) -> dict[str, int]:
        query = (
            "SELECT topic, COALESCE(SUM(offset >= committed), 0) FROM positions LEFT JOIN messages USING (topic, partition)"
            " WHERE grp = ? GROUP BY topic"
        )
        with self._trouble():
            return dict(self._connection().execute(query, (group,)).fetchall())

    def close(self) -> None:
        with self._guard:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _append(self, db: sqlite3.Connection, messages: Sequence[Message]) -> None:
        for message in messages:
            topic = topic_of(message)
            partition = zlib.crc32(message.key.encode()) % topic.partitions
            offset = db.execute(
                "INSERT INTO heads VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET next = next + 1 RETURNING next - 1",
                (topic.name, partition),
            ).fetchone()[0]
            db.execute(
                "INSERT INTO messages (topic, partition, offset, at, value) VALUES (?, ?, ?, ?, ?)",
                (topic.name, partition, offset, self._clock(), encode(message)),
            )

    def _forget_expired(self, db: sqlite3.Connection) -> None:
        for topic in BY_NAME.values():
            if topic.retention is not None:
                db.execute(
                    "DELETE FROM messages WHERE topic = ? AND at < ?", (topic.name, self._clock() - topic.retention)
                )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # Autocommit, so that transactions are where the code says; closed by `close`, maybe from another thread.
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._local.connection = connection
            with self._guard:
                self._connections.append(connection)
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

    def _wait_for_change(self, seconds: float) -> None:
        """Return when another connection has written, or after `seconds`."""
        db = self._connection()
        before = db.execute("PRAGMA data_version").fetchone()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(TICK, left))
            if db.execute("PRAGMA data_version").fetchone() != before:
                return


class EmbeddedSubscription:
    """One member of a group; see `bus.Subscription`."""

    def __init__(self, bus: EmbeddedBus, group: str, topics: Sequence[str], member: str) -> None:
        self._bus = bus
        self._group = group
        self._topics = tuple(topics)
        self._member = member
        self._incarnation = secrets.token_hex(8)
        self._renewed = 0.0

    def poll(self, timeout: float) -> Record | None:
        deadline = time.monotonic() + timeout
        while True:
            if record := self._take():
                return record
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._bus._wait_for_change(min(left, 0.5))  # at least that often, because a lease runs out without a write

    def keep_alive(self) -> None:
        now = self._bus._clock()
        if now - self._renewed < self._bus._lease / 5:
            return
        self._renewed = now
        with self._bus._transaction() as db:
            held = db.execute(
                "UPDATE positions SET expires = ? WHERE grp = ? AND member = ? AND incarnation = ?",
                (now + self._bus._lease, self._group, self._member, self._incarnation),
            )
        if held.rowcount == 0:
            raise Fenced

    def commit(self, record: Record, outputs: Sequence[Message] = ()) -> None:
        with self._bus._transaction() as db:
            done = db.execute(
                "UPDATE positions SET committed = committed + 1, attempts = 0, member = NULL, incarnation = NULL, expires = NULL"
                " WHERE grp = ? AND topic = ? AND partition = ? AND committed = ? AND incarnation = ?",
                (self._group, record.topic, record.partition, record.offset, self._incarnation),
            )
            if done.rowcount != 1:
                raise Fenced
            self._bus._append(db, outputs)

    def close(self) -> None:
        with self._bus._transaction() as db:
            db.execute(
                "UPDATE positions SET member = NULL, incarnation = NULL, expires = NULL WHERE grp = ? AND incarnation = ?",
                (self._group, self._incarnation),
            )

    def _take(self) -> Record | None:
        """Lease the partition with the oldest record that nobody works on. My own name's leases are my predecessor's, so mine."""
        now = self._bus._clock()
        with self._bus._trouble():
            if self._candidate(self._bus._connection(), now) is None:  # reading blocks nobody
                return None
        with self._bus._transaction() as db:
            row = self._candidate(db, now)
            if row is None:
                return None
            topic, partition, offset, at, value, attempts = row
            db.execute(
                "UPDATE positions SET attempts = attempts + 1, member = ?, incarnation = ?, expires = ?"
                " WHERE grp = ? AND topic = ? AND partition = ?",
                (self._member, self._incarnation, now + self._bus._lease, self._group, topic, partition),
            )
        self._renewed = now
        return Record(topic, partition, offset, at, value, attempt=attempts + 1)

    def _candidate(self, db: sqlite3.Connection, now: float) -> tuple[str, int, int, float, bytes, int] | None:
        marks = ",".join("?" * len(self._topics))
        row: tuple[str, int, int, float, bytes, int] | None = db.execute(
            "SELECT m.topic, m.partition, m.offset, m.at, m.value, p.attempts FROM positions p JOIN messages m"
            " ON m.topic = p.topic AND m.partition = p.partition AND m.offset = p.committed"
            f" WHERE p.grp = ? AND p.topic IN ({marks}) AND (p.member IS NULL OR p.member = ? OR p.expires < ?)"
            " ORDER BY m.id LIMIT 1",
            (self._group, *self._topics, self._member, now),
        ).fetchone()
        return row
