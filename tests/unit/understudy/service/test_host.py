"""A service that is told to end does so in order: handlers are closed, and what was in hand does not count as delivered."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import RunRequested
from understudy.terms import Artifact

SERVICE = """
import sys, time
from pathlib import Path
from understudy.belt.contracts import Progress, RunRequested
from understudy.belt.loop import Lane
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
