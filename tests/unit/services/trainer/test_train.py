"""The real training child: cancelled, stopped and killed it ends with the same bytes; errors leave it as exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.trainer.handlers import Trainer
from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, JobFolder
from services.trainer.launcher import ChildLauncher
from services.trainer.train import exit_code, make_portable
from understudy.bases import planned
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import CancelRequested, Progress, ServingRequested, TrainingRequested, decode
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.history import latest_logs
from understudy.belt.loop import Loop
from understudy.errors import Invalid
from understudy.plan import make
from understudy.recipe import parse
from understudy.service.child import Child
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store


class Watched:
    """A real launcher that remembers its last child."""

    def launch(self, folder: JobFolder) -> Child:
        self.child = ChildLauncher(threads=1).launch(folder)
        return self.child

    def command(self) -> int:
        """Process id of the training itself, the only child of the keeper."""
        return int(Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()[0])


class World:
    """A trainer in a folder of its own, a bus, and a request for 240 steps with a checkpoint every 20."""

    def __init__(self, folder: Path, models: Path, put: Callable[..., Artifact], rows: Any) -> None:
        self.bus, self.store, self.watched = EmbeddedBus(folder / "bus.sqlite"), local_store(folder), Watched()
        self.trainer = Trainer(
            store=self.store,
            plans=Plans(self.store),
            launcher=self.watched,
            models=models,
            work=folder / "work" / "a",
            threads=1,
            sleep=lambda _: time.sleep(0.02),
        )
        document = {
            "base": "tiny",
            "datasets": {"remarks": {"source": "x.csv"}},
            "variants": {"v": {"train": "remarks"}},
            "training": {
                "epochs": 6,
                "batch_size": 4,
                "learning_rate": 2e-3,
                "lora": {"dropout": 0.1},
                "keep": "best",
            },
        }
        datasets = {"remarks": put(self.store, folder / "remarks", "remarks", rows[:160], rows[160:])}
        self.request = TrainingRequested(
            run="r",
            item="v",
            index=1,
            plan=put_plan(self.store, "r", make(parse(document, "x"), lambda base: planned(base, models))),
            datasets=put_datasets(self.store, "r", datasets),
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, a service's loop and reader work; then they are stopped in order."""
        control = Control()
        reader = Reader(self.bus, [control])
        loop = Loop(self.bus, self.trainer.lane(), control, lambda: reader.caught_up.wait(5))
        threads = [threading.Thread(target=loop.run), threading.Thread(target=reader.follow, args=(loop.stop,))]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            loop.stop.set()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()

    def reaches(self, step: int) -> None:
        """Wait until the training is there."""
        self._until(lambda: any(self._is_at(step, record.value) for record in self.bus.replay(["progress"]) if record))

    def adapter(self) -> Artifact:
        """Wait for it."""
        self._until(lambda: list(self.bus.replay(["serving-requested"])))
        (record,) = self.bus.replay(["serving-requested"])
        assert record
        serving = decode(record.value)
        assert isinstance(serving, ServingRequested)
        assert serving.adapter
        return serving.adapter

    def gone(self, command: int) -> None:
        """Wait until a training has ended; that may take two seconds, and the loop half a one to hear of it."""
        self._until(lambda: not Path(f"/proc/{command}").exists(), 2.5)

    def log(self) -> str:
        artifact = self.store.find(latest_logs(self.store, "r")["v"])
        assert artifact
        return (self.store.fetch(artifact) / "train.log").read_text()

    @staticmethod
    def _is_at(step: int, value: bytes) -> bool:
        progress = decode(value)
        return isinstance(progress, Progress) and progress.done >= step

    @staticmethod
    def _until(met: Callable[[], object], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
def test_a_cancelled_a_stopped_and_a_killed_training_end_with_the_same_bytes_as_an_undisturbed_one(
    tmp_path: Path, tiny_base: Path, put_dataset: Any, examples: Any
) -> None:
    calm = World(tmp_path / "undisturbed", tiny_base, put_dataset, examples(200))
    calm.bus.publish(calm.request)
    with calm.running():
        expected = calm.adapter()
    store = calm.store

    world = World(tmp_path / "disturbed", tiny_base, put_dataset, examples(200))
    world.bus.publish(world.request)
    with world.running():
        world.reaches(30)
        command = world.watched.command()
        world.bus.publish(CancelRequested(run="r"))
        world.gone(command)
        world.bus.publish(world.request.model_copy(update={"generation": 2}))
        world.reaches(90)
        command = world.watched.command()
    assert not Path(f"/proc/{command}").exists(), "a service that is stopped leaves no child behind"
    with world.running():
        world.reaches(150)
        os.kill(world.watched.command(), signal.SIGKILL)
        assert world.adapter().sha256 == expected.sha256
    assert world.log().count("training from checkpoint-") == 3, "it went on, it did not begin again"
    assert world.log().count("training from the start") == 1
    assert not list((tmp_path / "disturbed" / "work" / "a").iterdir()), "no unfinished work is left"

    folder = store.fetch(expected)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "probe.json",
        "training.json",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not [path.name for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()], (
        "no path of this machine"
    )
    facts = json.loads((folder / "training.json").read_text())
    assert (facts["format"], facts["item"], facts["micro_batch"]) == ("understudy.training.v1", "v", 4)
    assert (folder / "README.md").read_text().count("# v: a LoRA adapter for tiny") == 1
    assert facts["steps"] == 240
    assert facts["datasets"]["remarks"]["examples_seen"] == 960
    assert facts["loss"][-1][1] < 0.9 * facts["loss"][0][1], "it learnt"
    assert [step for step, _ in facts["validation"]] == [80, 160, 240], "the curve began before the kills"
    assert facts["kept_step"] == min(facts["validation"], key=lambda point: point[1])[0]
    probes = json.loads((folder / "probe.json").read_text())
    assert probes["format"] == "understudy.probes.v1"
    for probe in probes["probes"]:
        assert len(probe["base_logprobs"]) == len(probe["adapter_logprobs"]) == len(probe["token_ids"]) - 1
        assert probe["base_logprobs"] != probe["adapter_logprobs"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), EXIT_MEMORY),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
            EXIT_MEMORY,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), EXIT_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), EXIT_DISK),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), EXIT_DISK),
        (KeyError("x"), None),
    ],
)
def test_errors_leave_as_exit_codes(tmp_path: Path, error: Exception, code: int | None) -> None:
    assert exit_code(error, JobFolder(tmp_path)) == code


def test_wrong_input_leaves_with_its_words(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert exit_code(Invalid("Too long", "Shorten it."), folder) == EXIT_INVALID
    assert json.loads(folder.error.read_text()) == {"message": "Too long. Shorten it."}


def test_adapter_config_is_the_same_whatever_the_order_of_sets(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    seen = set()
    for targets in (["q_proj", "k_proj"], ["k_proj", "q_proj"]):
        config.write_text(
            json.dumps({"target_modules": targets, "base_model_name_or_path": f"/somewhere/{targets[0]}"})
        )
        make_portable(config, "tiny")
        seen.add(config.read_text())
    assert len(seen) == 1
    assert '"tiny"' in seen.pop()
