"""A service that is told to end does so in order: handlers are closed, and what was in hand does not count as delivered."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import RunDeleted, RunRequested, ScoringRequested
from understudy.service.host import _Forgetting, kernel
from understudy.settings import Settings
from understudy.terms import Artifact

SERVICE = """
import sys, time
from pathlib import Path
from understudy.belt.contracts import Progress, RunRequested
from understudy.belt.delivery import Lane
from understudy.service.host import Service, serve
from understudy.settings import Settings

folder = Path(sys.argv[1])

def for_ever(request):
    try:
        while True:
            yield Progress(run=request.run, station="datagen", step="working")
            time.sleep(0.05)
    finally:
        time.sleep(0.5)  # ending a child takes a moment
        (folder / "closed").touch()

serve("datagen", Settings(data=folder), lambda settings, kernel: Service(
    lanes=(Lane("datagen", {RunRequested: for_ever}),), close=(folder / "service-closed").touch))
"""


def until(met: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_service_in_order(tmp_path: Path, word: signal.Signals) -> None:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    bus.publish(RunRequested(run="r", plan=Artifact(sha256="0" * 64), name="r", items=1))
    process = subprocess.Popen([sys.executable, "-c", SERVICE, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: list(bus.replay(["progress"])))
        process.send_signal(word)
        assert process.wait(10) == 0
    finally:
        process.kill()
    bus.close()
    assert (tmp_path / "closed").exists()
    assert (tmp_path / "service-closed").exists()
    position = "SELECT MAX(committed), MAX(deliveries), MAX(member) FROM positions WHERE topic = 'run-requested'"
    with sqlite3.connect(tmp_path / "bus.sqlite") as db:
        assert db.execute(position).fetchall() == [(0, 0, None)], "given back, and not counted as a delivery"


HANGING = """
import sys, threading
from pathlib import Path
from understudy.belt.contracts import RunRequested, ScoringRequested
from understudy.belt.delivery import Lane
from understudy.errors import Fatal
from understudy.service.host import Service, serve
from understudy.settings import Settings

hangs = threading.Event()

def hang(request):
    hangs.set()
    threading.Event().wait()  # in a call of some library that nothing interrupts
    yield

def full(request):
    hangs.wait()
    raise Fatal("The disk is full")
    yield

serve("datagen", Settings(data=Path(sys.argv[1])), lambda settings, kernel: Service(
    lanes=(Lane("datagen", {RunRequested: hang}), Lane("evaluator", {ScoringRequested: full}))))
"""


def test_what_cannot_go_on_ends_although_a_handler_hangs(tmp_path: Path) -> None:
    """Else the supervisor would never hear that the disk is full."""
    bus, plan = EmbeddedBus(tmp_path / "bus.sqlite"), Artifact(sha256="0" * 64)
    bus.publish(RunRequested(run="r", plan=plan, name="r", items=1))
    bus.publish(ScoringRequested(run="r", item="x", index=0, plan=plan, model="m"))
    process = subprocess.Popen([sys.executable, "-c", HANGING, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.wait(40) == 70
        assert process.stderr
        assert process.stderr.read().splitlines()[-1] == "datagen: The disk is full"
    finally:
        process.kill()


def test_a_port_that_is_taken_ends_a_service_with_that_word_although_a_handler_hangs(tmp_path: Path) -> None:
    bus, plan = EmbeddedBus(tmp_path / "bus.sqlite"), Artifact(sha256="0" * 64)
    bus.publish(RunRequested(run="r", plan=plan, name="r", items=1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-c", HANGING, str(tmp_path)]
        environment = {**os.environ, "UNDERSTUDY_PORT": port}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.wait(40) == 70
            assert process.stderr
            assert f"Cannot listen on 127.0.0.1:{port}" in process.stderr.read().splitlines()[-1]
        finally:
            process.kill()


def test_a_deletion_takes_the_work_of_its_run_but_not_of_one_that_was_asked_for_again(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, member="0")
    bus, work = EmbeddedBus(tmp_path / "bus.sqlite"), settings.work("trainer")
    shared = kernel(settings, bus)
    shared.reader.add(_Forgetting(shared, work))
    shared.reader.load()

    def ask(run: str, generation: int = 1) -> None:
        bus.publish(RunRequested(run=run, generation=generation, plan=Artifact(sha256="0" * 64), name=run, items=1))

    def begin(run: str) -> Path:
        checkpoint = work / run / "item" / "checkpoint"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        return checkpoint

    ask("gone")
    ask("again")
    shared.reader.load()
    gone, again = begin("gone"), begin("again")
    bus.publish(RunDeleted(run="gone"))
    shared.reader.load()
    assert not gone.exists()
    assert again.exists()
    bus.publish(RunDeleted(run="again"))
    shared.reader.load()
    assert not again.exists()
    ask("again", generation=2)
    shared.reader.load()
    again = begin("again")
    shared.reader.load()  # a reader that begins anew hears of the deletion once more
    assert again.exists()
