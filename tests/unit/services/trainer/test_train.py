"""The real training child: killed at any step it ends with the same bytes; errors leave it as exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.handlers import Trainer
from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, JobFolder
from services.trainer.launcher import ChildLauncher
from services.trainer.train import exit_code, make_portable
from understudy.belt.contracts import Artifact, ModelTrained, Progress, TrainingRequested
from understudy.errors import Invalid
from understudy.recipe import parse
from understudy.service.child import Child
from understudy.store.artifacts import ArtifactStore
from understudy.testing import local_store


class Watched:
    """A real launcher that remembers its last child."""

    def launch(self, folder: JobFolder) -> Child:
        self.child = ChildLauncher(threads=1).launch(folder)
        return self.child


def world(
    folder: Path, base: Path, put: Callable[[ArtifactStore, Path], Artifact], watched: Watched
) -> tuple[Trainer, TrainingRequested]:
    """A trainer in its own folder, and a request for 240 steps with a checkpoint every 20."""
    store = local_store(folder)
    artifact = put(store, folder / "remarks")
    document = {
        "base": "tiny",
        "datasets": {"remarks": {"source": "x.csv"}},
        "variants": {"v": {"train": "remarks"}},
        "training": {"epochs": 6, "batch_size": 4, "learning_rate": 2e-3, "lora": {"dropout": 0.1}},
    }
    trainer = Trainer(
        store=store, launcher=watched, models=base, work=folder / "work", threads=1, sleep=lambda _: time.sleep(0.02)
    )
    return trainer, TrainingRequested(run="r", variant="v", recipe=parse(document, "x"), datasets={"remarks": artifact})


def finish(trainer: Trainer, request: TrainingRequested, watched: Watched, kill_at: int | None = None) -> Artifact:
    """Train to the end; the command of the child is killed once, at step `kill_at`."""
    for message in trainer.train(request):
        if isinstance(message, Progress) and kill_at and message.done >= kill_at:
            os.kill(command_of(watched.child), signal.SIGKILL)
            kill_at = None
        if isinstance(message, ModelTrained):
            assert message.adapter
            assert kill_at is None
            return message.adapter
    raise AssertionError("no ModelTrained")


def command_of(child: Child) -> int:
    """Process id of the training itself, the only child of the keeper."""
    return int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_a_stopped_and_a_killed_training_end_with_the_same_bytes_as_an_undisturbed_one(
    tmp_path: Path, tiny_base: Path, put_dataset: Any, examples: Any
) -> None:
    def put(store: ArtifactStore, folder: Path) -> Artifact:
        return put_dataset(store, folder, "remarks", examples(160))

    watched = Watched()
    trainer, request = world(tmp_path / "undisturbed", tiny_base, put, watched)
    expected = finish(trainer, request, watched)

    store = trainer.store
    trainer, request = world(tmp_path / "disturbed", tiny_base, put, watched)
    delivery = trainer.train(request)
    next(message for message in delivery if isinstance(message, Progress) and message.done >= 30)
    training = command_of(watched.child)
    delivery.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{training}").exists(), "a closed handler leaves no child behind"
    assert finish(trainer, request, watched, kill_at=90).sha256 == expected.sha256
    log = (trainer.work / "r" / "v" / "train.log").read_text()
    assert log.count("training from checkpoint-") == 2, "it went on, it did not begin again"

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
    assert facts["steps"] == 240
    assert facts["datasets"]["remarks"]["examples_seen"] == 960
    assert facts["loss"][-1][1] < 0.9 * facts["loss"][0][1], "it learnt"
    for probe in json.loads((folder / "probe.json").read_text())["probes"]:
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
