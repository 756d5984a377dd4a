"""What the trainer does with messages and with each way a child can end; the child itself is a fake here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.handlers import Trainer
from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, Job, JobFolder, Step
from understudy.belt.contracts import Artifact, Message, ModelTrained, Progress, TrainingRequested
from understudy.errors import Fatal, Invalid, Transient
from understudy.recipe import parse
from understudy.testing import local_store

End = Callable[[JobFolder], int | None]


def finishes(folder: JobFolder) -> int:
    folder.adapter.mkdir()
    (folder.adapter / "adapter_config.json").write_text("{}")
    return 0


def exits(code: int) -> End:
    return lambda folder: code


class FakeLauncher:
    """Ends its n-th child as the n-th script says; None means: runs for ever."""

    def __init__(self, *ends: End) -> None:
        self.ends = list(ends)
        self.jobs: list[Job] = []
        self.stopped = 0

    def launch(self, folder: JobFolder) -> FakeLauncher:
        self.folder = folder
        self.jobs.append(Job.model_validate_json(folder.file.read_text()))
        self.end = self.ends.pop(0)
        return self

    def poll(self) -> int | None:
        return self.end(self.folder)

    def stop(self) -> None:
        self.stopped += 1


class Bench:
    """A trainer on a fake launcher, a request, and the folder of its job."""

    def __init__(self, tmp_path: Path, models: Path, datasets: dict[str, Artifact]) -> None:
        self.store, self.models, self.work = local_store(tmp_path), models, tmp_path / "work"
        self.folder = JobFolder(self.work / "r" / "v")
        self.datasets = datasets

    def request(self, variant: str = "v", **training: Any) -> TrainingRequested:
        document = {
            "base": "tiny",
            "datasets": {"remarks": {"source": "x.csv"}},
            "variants": {"v": {"train": "remarks"}},
            "training": training,
        }
        recipe = parse(document, "x")
        return TrainingRequested(run="r", variant=variant, recipe=recipe, datasets=self.datasets)

    def train(self, launcher: FakeLauncher, request: TrainingRequested | None = None) -> Iterator[Message]:
        trainer = Trainer(
            store=self.store, launcher=launcher, models=self.models, work=self.work, threads=1, sleep=lambda _: None
        )
        return trainer.train(request or self.request())


@pytest.fixture
def bench(tmp_path: Path, put_dataset: Any, examples: Any) -> Bench:
    base = tmp_path / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    return Bench(
        tmp_path,
        base.parent,
        {"remarks": put_dataset(local_store(tmp_path), tmp_path / "remarks", "remarks", examples(12))},
    )


def test_the_base_passes_through_without_work(bench: Bench) -> None:
    launcher = FakeLauncher()
    (message,) = bench.train(launcher, bench.request("base"))
    assert isinstance(message, ModelTrained)
    assert message.adapter is None
    assert message.variant == "base"
    assert not launcher.jobs


def test_a_finished_variant_is_emitted_again_without_work(bench: Bench) -> None:
    *_, first = bench.train(FakeLauncher(finishes))
    launcher = FakeLauncher()
    assert list(bench.train(launcher)) == [first]
    assert isinstance(first, ModelTrained)
    assert first.adapter
    assert not launcher.jobs


def test_an_adapter_made_just_before_a_crash_is_stored_without_a_second_training(bench: Bench) -> None:
    list(bench.train(FakeLauncher(finishes)))
    shutil.rmtree(bench.work.parent / "artifacts" / "refs" / "runs" / "r" / "adapters")
    finishes(bench.folder)
    launcher = FakeLauncher()
    (message,) = bench.train(launcher)
    assert isinstance(message, ModelTrained)
    assert message.adapter
    assert not launcher.jobs


def test_progress_carries_step_and_figures(bench: Bench) -> None:
    def steps(folder: JobFolder) -> int:
        line = Step(step=3, total=9, loss=0.5, tokens_per_second=100, eta_seconds=2).model_dump_json()
        folder.progress.write_text(line + "\n" + '{"step": 4, "tot')  # the second line is being written
        return finishes(folder)

    first, *_ = bench.train(FakeLauncher(steps))
    assert isinstance(first, Progress)
    assert (first.step, first.done, first.total, first.variant, first.figures["loss"]) == ("training", 3, 9, "v", 0.5)


def test_wrong_input_found_by_the_child_is_invalid_with_its_words(bench: Bench) -> None:
    def complains(folder: JobFolder) -> int:
        folder.error.write_text(json.dumps({"message": "Only 2 of 40 fit. Raise `training.max_length`."}))
        return EXIT_INVALID

    with pytest.raises(Invalid, match=r"Only 2 of 40 fit\. Raise"):
        list(bench.train(FakeLauncher(complains)))


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(bench: Bench) -> None:
    bench.folder.checkpoints.mkdir(parents=True)
    launcher = FakeLauncher(exits(EXIT_MEMORY), exits(EXIT_MEMORY), finishes)
    list(bench.train(launcher, bench.request(batch_size=12)))
    assert [(job.micro_batch, job.training.batch_size) for job in launcher.jobs] == [(12, 12), (6, 12), (3, 12)]
    assert not bench.folder.checkpoints.exists(), "what another micro-batch computed is not mixed in"


def test_a_halved_micro_batch_is_remembered_over_a_crash(bench: Bench) -> None:
    deliveries = bench.train(FakeLauncher(exits(EXIT_MEMORY), lambda _: None), bench.request(batch_size=8))
    next(deliveries), next(deliveries)
    deliveries.close()  # type: ignore[attr-defined]
    launcher = FakeLauncher(finishes)
    list(bench.train(launcher, bench.request(batch_size=8)))
    assert launcher.jobs[0].micro_batch == 4


def test_out_of_memory_with_single_examples_is_invalid(bench: Bench) -> None:
    with pytest.raises(Invalid, match="nf4"):
        list(bench.train(FakeLauncher(exits(EXIT_MEMORY)), bench.request(batch_size=1)))


def test_a_killed_child_is_started_again_as_it_was(bench: Bench) -> None:
    launcher = FakeLauncher(exits(-9), exits(-9), finishes)
    list(bench.train(launcher))
    assert launcher.jobs[0] == launcher.jobs[1] == launcher.jobs[2]


def test_a_child_that_is_killed_for_ever_is_given_up(bench: Bench) -> None:
    with pytest.raises(Transient, match="signal 9"):
        list(bench.train(FakeLauncher(*[exits(-9)] * 100)))


def test_a_full_disk_is_fatal(bench: Bench) -> None:
    with pytest.raises(Fatal, match="full"):
        list(bench.train(FakeLauncher(exits(EXIT_DISK))))


def test_an_unexpected_end_is_transient_with_the_last_words(bench: Bench) -> None:
    def crashes(folder: JobFolder) -> int:
        folder.log.write_text("Traceback\nKeyError: 'boom'\n")
        return 1

    with pytest.raises(Transient, match=r"code 1.*KeyError: 'boom'"):
        list(bench.train(FakeLauncher(crashes)))


def test_closing_the_generator_stops_the_child(bench: Bench) -> None:
    launcher = FakeLauncher(lambda _: None)
    running = bench.train(launcher)
    assert isinstance(next(running), Progress)
    running.close()  # type: ignore[attr-defined]
    assert launcher.stopped == 1


def test_work_on_another_recipe_is_thrown_away(bench: Bench) -> None:
    running = bench.train(FakeLauncher(lambda _: None), bench.request(epochs=1))
    next(running)
    running.close()  # type: ignore[attr-defined]
    bench.folder.checkpoints.mkdir()
    running = bench.train(FakeLauncher(lambda _: None), bench.request(epochs=2))
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert not bench.folder.checkpoints.exists()


def test_a_dataset_without_training_rows_is_invalid_before_a_child_starts(
    bench: Bench, tmp_path: Path, put_dataset: Any
) -> None:
    bench.datasets["remarks"] = put_dataset(bench.store, tmp_path / "empty", "other", [])
    with pytest.raises(Invalid, match="`remarks` has no training rows"):
        list(bench.train(FakeLauncher()))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [("config.json", b"{", "cannot be read"), ("model.safetensors", b"", "no .safetensors")],
)
def test_a_damaged_base_is_invalid_before_a_child_starts(bench: Bench, file: str, content: bytes, words: str) -> None:
    (bench.models / "tiny" / file).write_bytes(content)
    with pytest.raises(Invalid, match=words):
        list(bench.train(FakeLauncher()))


def test_the_first_variant_defines_the_token_budget_of_all(
    bench: Bench, tmp_path: Path, put_dataset: Any, examples: Any
) -> None:
    bench.datasets["more"] = put_dataset(bench.store, tmp_path / "more", "more", examples(12, "more"))
    document = {
        "base": "tiny",
        "datasets": {"remarks": {"source": "x.csv"}, "more": {"source": "y.csv"}},
        "variants": {"v": {"train": "remarks"}, "w": {"train": ["more", {"more": 1, "remarks": 2}]}},
    }
    launcher = FakeLauncher(finishes)
    list(
        bench.train(
            launcher, TrainingRequested(run="r", variant="w", recipe=parse(document, "x"), datasets=bench.datasets)
        )
    )
    assert launcher.jobs[0].budget_stages == ({"remarks": 1.0},)
    assert launcher.jobs[0].stages == ({"more": 1.0}, {"more": 1.0, "remarks": 2.0})
