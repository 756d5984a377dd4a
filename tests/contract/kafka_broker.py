"""A real Kafka broker for tests: the one that KAFKA_BOOTSTRAP_SERVERS names, or one started from KAFKA_HOME.

Our own can be killed and started again on its data. Does not install Kafka."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from understudy.service.ports import free_ports

CLUSTER = "dW5kZXJzdHVkeS10ZXN0cw"
CONFIG = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{listeners}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs={folder}/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
{more}
"""


class Broker:
    """`with Broker(home, folder) as broker: broker.servers`; `kill()` and `start()` as often as needed."""

    def __init__(self, home: Path, folder: Path, listeners: str = "", more: str = "") -> None:
        self._home, self._folder = home, folder
        port, controller = free_ports(2)
        self.servers = f"127.0.0.1:{port}"
        self._port = port
        folder.mkdir(parents=True)
        (folder / "server.properties").write_text(
            CONFIG.format(port=port, controller=controller, folder=folder, listeners=listeners, more=more)
        )
        self._run("kafka-storage.sh", "format", "--standalone", "-t", CLUSTER, "-c", str(folder / "server.properties"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it takes connections."""
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._home / "bin" / "kafka-server-start.sh", self._folder / "server.properties"],
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            assert self._process.poll() is None, (self._folder / "broker.log").read_text()[-2000:]
            time.sleep(0.1)
        raise AssertionError("The broker did not come up")

    def kill(self) -> None:
        """As a power cut would."""
        if self._process:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """A signal to the broker's process; one that shall stop it has done so in every thread."""
        assert self._process
        os.killpg(self._process.pid, number)
        deadline = time.monotonic() + 10
        while number == signal.SIGSTOP and set(_states(self._process.pid)) != {"T"}:
            assert time.monotonic() < deadline, "it does not stop"
            time.sleep(0.01)

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, script: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._home / "bin" / script, *arguments], env=self._environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _environment(self) -> dict[str, str]:
        return os.environ | {"KAFKA_HEAP_OPTS": "-Xmx256m", "LOG_DIR": str(self._folder)}


@contextmanager
def secured(home: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """A broker that talks TLS only and knows the user `understudy` with the password `right`: its address and its CA."""
    store, authority = folder / "broker.p12", folder / "ca.pem"
    keytool = ["keytool", "-keystore", store, "-storepass", "changeit", "-alias", "broker"]
    made = ["-genkeypair", "-keyalg", "RSA", "-validity", "2", "-dname", "CN=localhost", "-ext", "SAN=IP:127.0.0.1"]
    subprocess.run([*keytool, *made], check=True, capture_output=True)
    subprocess.run([*keytool, "-exportcert", "-rfc", "-file", authority], check=True, capture_output=True)
    (port,) = free_ports(1)
    user = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_understudy="right";'
    more = "\n".join(
        (
            f"ssl.keystore.location={store}",
            "ssl.keystore.password=changeit",
            "ssl.keystore.type=PKCS12",
            "sasl.enabled.mechanisms=PLAIN",
            f"listener.name.sasl_ssl.plain.sasl.jaas.config={user}",
        )
    )
    address = f"127.0.0.1:{port}"
    with Broker(home, folder / "broker", listeners=f",SASL_SSL://{address}", more=more):
        yield address, authority


def home() -> Path | None:
    """An unpacked Apache Kafka, if KAFKA_HOME names one and there is Java to run it."""
    named = os.environ.get("KAFKA_HOME", "")
    return Path(named).resolve() if named and shutil.which("java") else None


@contextmanager
def any_broker(folder: Path) -> Iterator[str]:
    """Bootstrap servers of the named broker, else of one of our own in `folder`; skips the test when there is neither."""
    if named := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield named
    elif found := home():
        with Broker(found, folder) as broker:
            yield broker.servers
    else:
        pytest.skip("no broker: set KAFKA_BOOTSTRAP_SERVERS, or KAFKA_HOME to an unpacked Apache Kafka")


def _states(pid: int) -> list[str]:
    """Of every thread of a process, as /proc has it."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [stat.rpartition(")")[2].split()[0] for stat in stats]
