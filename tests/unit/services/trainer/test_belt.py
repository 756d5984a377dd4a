"""The trainer in its loop on a real bus: stops, kills, cancelling, and what it lacks. Trainings are fakes that make steps.

Also a program, `python test_belt.py FOLDER stuck|growing`: kills a trainer at every delivery until its message is done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.trainer.handlers import Trainer
from services.trainer.job import JobFolder, Step
from understudy.bases import planned
from understudy.belt import contracts as c
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.loop import Loop
from understudy.plan import Item, make
from understudy.recipe import parse
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.testing import local_store

KILLS = 45
"""More than a message may be handed out without a step forward."""


@dataclass
class Steps:
    """A launcher whose child makes a step at each look, from where the last child stopped, and is done after `total`."""

    total: int = 10**9
    silent: bool = False
    """Makes no step at all."""
    before_step: Callable[[int], object] = lambda step: None
    launched: int = 0
    stopped: int = 0

    def launch(self, folder: JobFolder) -> Steps:
        self.folder = folder
        self.launched += 1
        return self

    def poll(self) -> int | None:
        if self.silent:
            return None
        counter = self.folder.path / "checkpoint"
        step = int(counter.read_text()) + 1 if counter.exists() else 1
        self.before_step(step)
        counter.write_text(str(step))
        line = Step(step=step, total=self.total, loss=1, tokens_per_second=1, eta_seconds=1)
        with self.folder.progress.open("a") as file:
            file.write(line.model_dump_json() + "\n")
        if step < self.total:
            return None
        self.folder.adapter.mkdir()
        (self.folder.adapter / "adapter_config.json").write_text("{}")
        return 0

    def stop(self, grace: float) -> None:
        self.stopped += 1


class World:
    """A store with a base and datasets, a bus, and trainers between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bus, self.store = folder, EmbeddedBus(folder / "bus.sqlite"), local_store(folder)

    def trainer(self, launcher: Steps, member: str = "a", has: str = "") -> Trainer:
        return Trainer(
            store=self.store,
            plans=Plans(self.store),
            launcher=launcher,
            models=self.folder / "models",
            work=self.folder / "work" / member,
            threads=1,
            has=frozenset(filter(None, [has])),
            sleep=lambda _: time.sleep(0.005),
        )

    def loop(self, launcher: Steps, control: Control | None = None, has: str = "", member: str = "a") -> Loop:
        lane = self.trainer(launcher, member, has).lane()
        return Loop(self.bus, lane, control or Control(), member=member, tick=0.02, backoff=0.01)

    def ask(self, generation: int = 1, **training: Any) -> c.TrainingRequested:
        """Put a run with one item to train on the bus."""
        base = self.folder / "models" / "tiny"
        rows = self.folder / "remarks"
        if not rows.exists():
            base.mkdir(parents=True)
            (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
            (base / "tokenizer.json").write_text("{}")
            (base / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
            rows.mkdir()
            (rows / "train.jsonl").write_text("{}\n")
        recipe = parse({"base": "tiny", "datasets": {"remarks": {"source": "x.csv"}}, "training": training}, "x")
        plan = make(recipe, lambda reference: planned(reference, base.parent))
        item = next(item for item in plan.items if item.training)
        datasets = {"remarks": self.store.put("runs/r/datasets/remarks", rows)}
        request = c.TrainingRequested(
            run="r",
            generation=generation,
            item=item.name,
            index=1,
            plan=put_plan(self.store, "r", plan),
            datasets=put_datasets(self.store, "r", datasets),
            needs=item.needs.get("trainer", ()),
        )
        self.bus.publish(*planned_of(item, generation), request)
        return request

    def messages(self, topic: str) -> list[Any]:
        return [c.decode(record.value) for record in self.bus.replay([topic]) if record]

    def progress(self) -> list[c.Progress]:
        return self.messages("progress")


def planned_of(item: Item, generation: int) -> tuple[c.ItemPlanned, c.RunRequested]:
    about = {"run": "r", "generation": generation}
    return (
        c.ItemPlanned(**about, item=item.name, index=1, base="tiny", what=item.what),  # type: ignore[arg-type]
        c.RunRequested(**about, plan=c.Artifact(sha256="0" * 64), name="r", items=1),  # type: ignore[arg-type]
    )


def until(met: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def running(loop: Loop) -> Iterator[None]:
    """Inside, the loop works; then it is stopped in order."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.bus.close()


def test_thirty_orderly_stops_do_not_bury_a_training(world: World) -> None:
    world.ask()
    silent = Steps(silent=True)
    for times in range(1, 32):
        with running(world.loop(silent)):
            until(lambda times=times: silent.launched == times)  # type: ignore[misc]
        assert silent.stopped == times
    with running(world.loop(Steps(total=3))):
        until(lambda: world.messages("serving-requested"))
    assert not world.messages("dead-letters")


def killed(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Run this file as a program; it says how many deliveries there were."""
    root = Path(__file__).resolve().parents[4]
    return subprocess.run(
        [sys.executable, __file__, str(folder), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_a_training_that_is_killed_each_time_before_a_step_is_buried_after_thirty(world: World) -> None:
    assert killed(world.folder, "stuck").stdout.split() == ["30", "kills"]
    (letter,) = world.messages("dead-letters")
    (failed,) = world.messages("run-control")
    assert "without a step forward" in letter.reason
    assert (failed.item, failed.station) == ("remarks", "trainer")


def test_a_training_that_is_killed_each_time_but_gets_further_is_not(world: World) -> None:
    assert killed(world.folder, "growing").stdout.split() == [str(KILLS), "kills"]
    assert not world.messages("dead-letters")
    with running(world.loop(Steps(total=KILLS + 3))):
        until(lambda: world.messages("serving-requested"))


def test_a_cancelled_training_ends_at_once_and_its_next_generation_goes_on(world: World) -> None:
    control = Control()
    reader = Reader(world.bus, [control])
    launcher = Steps()
    loop = world.loop(launcher, control)
    threading.Thread(target=reader.follow, args=(loop.stop,), daemon=True).start()
    request = world.ask()
    with running(loop):
        until(lambda: any(progress.done > 5 for progress in world.progress()))
        world.bus.publish(c.CancelRequested(run="r"))
        began = time.monotonic()
        until(lambda: launcher.stopped)
        assert time.monotonic() - began < 1
        until(lambda: world.bus.lag("trainer")["training-requested"] == 0)
        assert not world.messages("serving-requested")
        assert not world.messages("dead-letters")

        reached = max(progress.done for progress in world.progress())
        launcher.total = reached + 20
        world.bus.publish(request.model_copy(update={"generation": 2}))
        until(lambda: world.messages("serving-requested"))
    (progress,) = [each for each in world.progress() if each.generation == 2]
    assert progress.done == progress.mark == reached + 20
    assert launcher.launched == 2


def test_what_this_trainer_lacks_stays_on_the_bus_until_one_comes_that_has_it(world: World) -> None:
    request = world.ask(quantize="nf4")
    assert request.needs == ("nf4",)
    plain, able = Steps(total=3), Steps(total=3)
    with running(world.loop(plain, member="plain")):
        until(world.progress)
        time.sleep(0.2)
        assert world.bus.lag("trainer")["training-requested"] == 1
        assert not world.messages("dead-letters")
        state = Runs(Control())
        Reader(world.bus, [state]).load()
        run = state.get("r")
        assert run
        assert run.items["remarks"].progress
        assert "waits for a trainer that has nf4" in run.items["remarks"].progress.step

        with running(world.loop(able, has="nf4", member="able")):
            until(lambda: world.messages("serving-requested"))
    assert (plain.launched, able.launched) == (0, 1)
    assert not world.messages("dead-letters")


def kill_at_every_delivery(folder: Path, growing: bool) -> int:
    """How many times a trainer was killed until its message was done, at most `KILLS`.

    Forked from this process, which has one thread and nothing else of the bus open, so that a round takes no imports.
    """
    world = World(folder)
    world.ask()
    world.bus.close()
    for kills in range(KILLS):
        trainer = os.fork()
        if trainer == 0:
            fresh = World(folder)
            loop = fresh.loop(Steps(before_step=Killing(growing)))
            threading.Thread(target=stop_when_done, args=(fresh, loop)).start()
            loop.run()
            os._exit(0)
        if os.waitpid(trainer, 0)[1] == 0:
            return kills
    return KILLS


class Killing:
    """Kills this process before its first step, or when `growing` before its second, once the first has been told."""

    def __init__(self, growing: bool) -> None:
        self.allowed = int(growing)

    def __call__(self, step: int) -> None:
        if self.allowed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.allowed -= 1


def stop_when_done(world: World, loop: Loop) -> None:
    until(lambda: world.messages("dead-letters"), seconds=60)
    loop.stop.set()


if __name__ == "__main__":
    print(kill_at_every_delivery(Path(sys.argv[1]), sys.argv[2] == "growing"), "kills")
