"""What the trainer does with messages and with each way a child can end; the child itself is a fake here."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from services.trainer import handlers
from services.trainer.handlers import Trainer
from services.trainer.job import EXIT_DISK, EXIT_INVALID, EXIT_MEMORY, Job, JobFolder, Step
from services.trainer.launcher import Running
from understudy.bases import planned
from understudy.belt.contracts import Message, Progress, ServingRequested, TrainingRequested
from understudy.belt.history import latest_logs
from understudy.errors import Fatal, Invalid, Transient, Unsupported
from understudy.interrupt import Interrupted, interruptible
from understudy.plan import Plan, make
from understudy.recipe import parse
from understudy.service import machine
from understudy.service.child import Child
from understudy.store import keys
from understudy.store.plans import Plans, put_datasets, put_plan
from understudy.terms import Artifact
from understudy.testing import local_store

End = Callable[[JobFolder], int | None]
WEIGHTS = save({"a": numpy.zeros(4), "b": numpy.zeros((2, 3))}, {"format": "pt"})


def finishes(folder: JobFolder) -> int:
    folder.adapter.mkdir()
    (folder.adapter / "adapter_config.json").write_text("{}")
    return 0


def exits(code: int) -> End:
    return lambda folder: code


def steps(*numbers: int, **more: float) -> str:
    lines = (Step(step=n, total=9, loss=0.5, tokens_per_second=100, eta_seconds=2, **more) for n in numbers)
    return "".join(f"{line.model_dump_json()}\n" for line in lines)


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

    def stop(self, grace: float) -> None:
        self.stopped += 1


class RealLauncher:
    """Starts `code` instead of the training."""

    def __init__(self, code: str) -> None:
        self.code = code

    def launch(self, folder: JobFolder) -> Running:
        self.child = Child([sys.executable, "-c", self.code], log=folder.log)
        return self.child


class Bench:
    """A trainer on a fake launcher, requests, and the folder of their job."""

    def __init__(self, tmp_path: Path, models: Path, datasets: dict[str, Artifact]) -> None:
        self.store, self.models, self.work = local_store(tmp_path), models, tmp_path / "work" / "a"
        self.plans = Plans(self.store)
        self.folder = JobFolder(self.work / "r" / "v")
        self.datasets = datasets
        self._numbers = count()

    def request(self, item: str = "v", recipe: dict[str, Any] | None = None, **training: Any) -> TrainingRequested:
        """A request for one item of a plan of its own."""
        document = {
            "base": "tiny",
            "datasets": {name: {"source": "x.csv"} for name in self.datasets},
            "variants": {"v": {"train": "remarks"}},
            "training": training,
        }
        return self.request_of(
            make(parse(document | (recipe or {}), "x"), lambda base: planned(base, self.models)), item
        )

    def request_of(self, plan: Plan, item: str) -> TrainingRequested:
        place = f"plan-{next(self._numbers)}"
        return TrainingRequested(
            run="r",
            generation=3,
            attempt=2,
            item=item,
            index=[each.name for each in plan.items].index(item),
            base=plan.item(item).base,
            plan=put_plan(self.store, place, plan),
            datasets=put_datasets(self.store, place, self.datasets),
        )

    def trainer(self, launcher: Any) -> Trainer:
        return Trainer(
            store=self.store,
            plans=self.plans,
            launcher=launcher,
            models=self.models,
            work=self.work,
            threads=1,
            sleep=lambda _: None,
        )

    def train(self, launcher: Any, request: TrainingRequested | None = None) -> Generator[Message, None, None]:
        training = self.trainer(launcher).train(request or self.request())
        assert isinstance(training, Generator)
        return training

    def serving(self, launcher: Any, request: TrainingRequested | None = None) -> ServingRequested:
        """What a whole training ends with."""
        *_, last = self.train(launcher, request)
        assert isinstance(last, ServingRequested)
        return last

    def log(self) -> str | None:
        """What people are shown of it."""
        artifact = self.store.find(latest_logs(self.store, "r").get("v", "none"))
        return (self.store.fetch(artifact) / "train.log").read_text() if artifact else None


@pytest.fixture
def bench(tmp_path: Path, put_dataset: Any, examples: Any) -> Bench:
    base = tmp_path / "models" / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(WEIGHTS)
    return Bench(
        tmp_path,
        base.parent,
        {"remarks": put_dataset(local_store(tmp_path), tmp_path / "remarks", "remarks", examples(12))},
    )


def test_the_adapter_goes_on_to_be_served_with_all_that_rides_along(bench: Bench) -> None:
    request = bench.request()
    serving = bench.serving(FakeLauncher(finishes), request)
    assert serving.adapter == bench.store.find("runs/r/adapters/v")
    rides = {"run", "generation", "attempt", "item", "index", "base", "plan", "datasets"}
    assert serving.model_dump(include=rides) == request.model_dump(include=rides)
    assert serving.needs == ()


def test_what_serving_needs_is_read_from_the_plan(bench: Bench) -> None:
    plan = bench.plans.get(bench.request().plan)
    items = tuple(
        item.model_copy(update={"needs": {"trainer": ("nf4",), "inference": ("rank-512",)}}) for item in plan.items
    )
    request = bench.request_of(plan.model_copy(update={"items": items}), "v")
    assert bench.serving(FakeLauncher(finishes), request).needs == ("rank-512",)


def test_a_finished_item_is_emitted_again_without_work(bench: Bench) -> None:
    first = bench.serving(FakeLauncher(finishes))
    launcher = FakeLauncher()
    (again,) = bench.train(launcher)
    assert isinstance(again, ServingRequested)
    assert again.adapter == first.adapter
    assert not launcher.jobs
    assert not bench.folder.path.exists(), "no work is left behind"


def test_an_adapter_made_just_before_a_crash_is_stored_without_a_second_training(bench: Bench) -> None:
    running = bench.train(FakeLauncher(lambda _: None))
    next(running), running.close()
    finishes(bench.folder)
    launcher = FakeLauncher()
    assert bench.serving(launcher).adapter
    assert not launcher.jobs


def test_what_is_not_trained_is_refused(bench: Bench) -> None:
    with pytest.raises(Invalid, match="`base` of run r has no training"):
        list(bench.train(FakeLauncher(), bench.request("base")))


def test_a_plan_of_a_newer_version_is_left_for_a_newer_trainer(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "plan.json").write_text('{"format": "understudy.plan.v2"}')
    newer = bench.store.put("runs/newer/plan", tmp_path / "newer")
    with pytest.raises(Unsupported):
        list(bench.train(FakeLauncher(), bench.request().model_copy(update={"plan": newer})))


def test_progress_carries_step_figures_and_a_mark_and_answers_its_request(bench: Bench) -> None:
    def torn(folder: JobFolder) -> int:
        folder.progress.write_text(steps(3) + '{"step": 4, "tot')  # the second line is being written
        return finishes(folder)

    progress, *_ = bench.train(FakeLauncher(torn))
    assert isinstance(progress, Progress)
    assert (progress.step, progress.done, progress.total, progress.mark) == ("training", 3, 9, 3)
    assert progress.figures == {"loss": 0.5, "tokens_per_second": 100, "eta_seconds": 2}
    assert (progress.run, progress.item, progress.generation, progress.attempt) == ("r", "v", 3, 2)
    assert progress.station == "trainer"


def test_progress_carries_the_validation_loss_where_there_is_one(bench: Bench) -> None:
    def watched(folder: JobFolder) -> int:
        folder.progress.write_text(steps(3, validation_loss=0.25))
        return finishes(folder)

    progress, *_ = bench.train(FakeLauncher(watched))
    assert isinstance(progress, Progress)
    assert progress.figures["validation_loss"] == 0.25


def test_preparing_is_no_step_forward(bench: Bench) -> None:
    progress, *_ = bench.train(FakeLauncher(finishes))
    assert isinstance(progress, Progress)
    assert (progress.step, progress.mark) == ("preparing", None)


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
    delivery = bench.train(FakeLauncher(exits(EXIT_MEMORY), lambda _: None), bench.request(batch_size=8))
    next(delivery), next(delivery), delivery.close()
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


def reaches(step: int) -> End:
    def killed(folder: JobFolder) -> int:
        folder.progress.write_text(steps(step))
        return -9

    return killed


def test_a_child_that_is_killed_at_the_same_step_for_ever_is_given_up(bench: Bench) -> None:
    launcher = FakeLauncher(*[reaches(5)] * 100)
    with pytest.raises(Transient, match="signal 9"):
        list(bench.train(launcher))
    assert len(launcher.jobs) == 1 + handlers.INTERRUPTIONS + 1


def test_a_child_that_is_killed_but_gets_further_each_time_goes_on(bench: Bench) -> None:
    assert bench.serving(FakeLauncher(*[reaches(step) for step in range(1, 60)], finishes)).adapter


def test_a_full_disk_is_fatal(bench: Bench) -> None:
    with pytest.raises(Fatal, match="full"):
        list(bench.train(FakeLauncher(exits(EXIT_DISK))))


def test_an_unexpected_end_is_transient_with_the_last_words(bench: Bench) -> None:
    def crashes(folder: JobFolder) -> int:
        folder.log.write_text("Traceback\nKeyError: 'boom'\n")
        return 1

    with pytest.raises(Transient, match=r"code 1.*KeyError: 'boom'"):
        list(bench.train(FakeLauncher(crashes)))


def test_the_last_words_survive_the_cut_of_a_reason(bench: Bench) -> None:
    def crashes(folder: JobFolder) -> int:
        folder.log.write_text("x" * 5000 + "\n" + "y" * 900 + " the very end\n")
        return 1

    with pytest.raises(Transient) as raised:
        list(bench.train(FakeLauncher(crashes)))
    assert "the very end" in str(raised.value)[:900]


def test_closing_the_generator_stops_the_child(bench: Bench) -> None:
    launcher = FakeLauncher(lambda _: None)
    running = bench.train(launcher)
    assert isinstance(next(running), Progress)
    running.close()
    assert launcher.stopped == 1
    assert bench.folder.file.exists(), "unfinished work stays"
    assert bench.log() is None, "it has not ended"


def test_a_silent_child_is_interrupted_between_two_looks(bench: Bench) -> None:
    stop, launcher = threading.Event(), FakeLauncher(lambda _: None)
    running = bench.train(launcher)
    next(running)
    stop.set()
    with interruptible(stop), pytest.raises(Interrupted):
        next(running)
    assert launcher.stopped == 1


DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
FROZEN = "import os, signal; print('frozen', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize("code", [DEAF, FROZEN])
def test_a_child_that_does_not_listen_is_gone_within_two_seconds(bench: Bench, code: str) -> None:
    launcher = RealLauncher(code)
    running = bench.train(launcher)
    next(running)
    deadline = time.monotonic() + 10
    while not bench.folder.log.exists() or not bench.folder.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    command = int(Path(f"/proc/{launcher.child.pid}/task/{launcher.child.pid}/children").read_text())
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 2
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)


def test_the_log_of_a_success_is_kept(bench: Bench) -> None:
    def says(folder: JobFolder) -> int:
        folder.log.write_text("0.1 s trained\n")
        return finishes(folder)

    list(bench.train(FakeLauncher(says)))
    assert bench.log() == "0.1 s trained\n"


def crashes_saying(text: str) -> End:
    def crashes(folder: JobFolder) -> int:
        folder.log.write_text(text)
        return 1

    return crashes


def test_of_several_tries_the_latest_is_what_people_read(bench: Bench) -> None:
    """Whatever ended the one before it; each is kept, because nothing in the store is ever changed."""
    for text in ("first", "second"):
        with pytest.raises(Transient):
            list(bench.train(FakeLauncher(crashes_saying(text))))
        assert bench.log() == text

    def says(folder: JobFolder) -> int:
        folder.log.write_text("trained")
        return finishes(folder)

    list(bench.train(FakeLauncher(says)))
    assert bench.log() == "trained"
    assert len(bench.store.keys(keys.training_logs("r"))) == 3


def test_a_finished_item_leaves_no_folder(bench: Bench) -> None:
    """Of its run neither, once that has nothing unfinished: a trainer sees thousands of runs."""
    other = bench.work / "r" / "w"
    other.mkdir(parents=True)
    bench.serving(FakeLauncher(finishes))
    assert [*bench.work.rglob("*")] == [bench.work / "r", other]
    other.rmdir()
    bench.store.delete(keys.adapter("r", "v"))
    bench.serving(FakeLauncher(finishes))
    assert not [*bench.work.rglob("*")]


def test_of_a_long_log_whole_lines_of_the_end_are_kept(bench: Bench) -> None:
    lines = [f"{n:06} {'x' * 92}\n" for n in range(20_000)]
    with pytest.raises(Transient):
        list(bench.train(FakeLauncher(crashes_saying("".join(lines)))))
    kept = bench.log()
    assert kept
    assert (1 << 20) - 100 < len(kept) <= 1 << 20
    assert "".join(lines).endswith(kept)
    assert kept.splitlines(keepends=True)[0] in lines


def test_a_log_that_cannot_be_stored_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    put = bench.store.put

    def refuses(key: str, folder: Path, **options: Any) -> Artifact:
        if key.startswith("runs/r/logs/"):
            raise Fatal("The disk is full")
        return put(key, folder, **options)

    def says(folder: JobFolder) -> int:
        folder.log.write_text("hello\n")
        return finishes(folder)

    monkeypatch.setattr(bench.store, "put", refuses)
    assert bench.serving(FakeLauncher(says)).adapter
    assert bench.log() is None


def test_work_on_another_plan_is_thrown_away(bench: Bench) -> None:
    running = bench.train(FakeLauncher(lambda _: None), bench.request(epochs=1))
    next(running), running.close()
    bench.folder.checkpoints.mkdir()
    running = bench.train(FakeLauncher(lambda _: None), bench.request(epochs=2))
    next(running), running.close()
    assert not bench.folder.checkpoints.exists()


@pytest.mark.parametrize("content", ['{"format": "understudy.job.v2"}', "{torn", None])
def test_work_that_another_version_left_is_thrown_away(bench: Bench, content: str | None) -> None:
    running = bench.train(FakeLauncher(lambda _: None))
    next(running), running.close()
    job = json.loads(bench.folder.file.read_text())
    assert job["format"] == "understudy.job.v1"
    bench.folder.file.write_text(content or json.dumps(job | {"format": "understudy.job.v2"}))
    bench.folder.checkpoints.mkdir()
    launcher = FakeLauncher(finishes)
    bench.serving(launcher)
    assert launcher.jobs[0].item == "v"
    assert not bench.folder.checkpoints.exists()


def test_work_of_a_cancelled_generation_is_taken_up_by_the_next(bench: Bench) -> None:
    request = bench.request()
    running = bench.train(FakeLauncher(lambda _: None), request)
    next(running), running.close()
    bench.folder.checkpoints.mkdir()
    running = bench.train(FakeLauncher(lambda _: None), request.model_copy(update={"generation": 4}))
    next(running), running.close()
    assert bench.folder.checkpoints.exists()


def test_a_dataset_without_training_rows_is_invalid_before_a_child_starts(
    bench: Bench, tmp_path: Path, put_dataset: Any
) -> None:
    bench.datasets["remarks"] = put_dataset(bench.store, tmp_path / "empty", "other", [])
    with pytest.raises(Invalid, match="`remarks` has no training rows"):
        list(bench.train(FakeLauncher()))


def test_the_best_checkpoint_without_validation_rows_is_invalid_before_a_child_starts(
    bench: Bench, tmp_path: Path, put_dataset: Any, examples: Any
) -> None:
    with pytest.raises(Invalid, match=r"`v` shall keep its best checkpoint.*`datasets.remarks.rows.validation`"):
        list(bench.train(FakeLauncher(), bench.request(keep="best")))
    bench.datasets["more"] = put_dataset(bench.store, tmp_path / "more", "more", examples(12), examples(1))
    mixed = {"variants": {"v": {"train": ["remarks", "more"]}}}
    assert bench.serving(FakeLauncher(finishes), bench.request(recipe=mixed, keep="best")).adapter, "one of them has"


def test_a_dataset_that_was_not_made_is_invalid(bench: Bench) -> None:
    request = bench.request()
    for datasets in (None, put_datasets(bench.store, "empty", {})):
        with pytest.raises(Invalid, match="`remarks`, on which `v` trains, was not made"):
            list(bench.train(FakeLauncher(), request.model_copy(update={"datasets": datasets})))


def test_a_base_that_was_changed_since_the_plan_is_invalid(bench: Bench) -> None:
    request = bench.request()
    (bench.models / "tiny" / "model.safetensors").write_bytes(b"heavier")
    with pytest.raises(Invalid, match=r"`tiny` was changed since the run was planned.*--fresh"):
        list(bench.train(FakeLauncher(), request))


def test_a_base_that_outgrows_the_memory_of_the_container_is_invalid(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: len(WEIGHTS) // 2)
    with pytest.raises(Invalid, match="nf4"):
        list(bench.train(FakeLauncher()))
    assert bench.serving(FakeLauncher(finishes), bench.request(quantize="nf4")).adapter, "four bits do fit"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b"{", "cannot be read"),
        ("model.safetensors", b"", "no .safetensors"),
        ("model.safetensors", WEIGHTS[: len(WEIGHTS) // 2], r"/tiny/model\.safetensors is damaged"),
        ("model.safetensors", WEIGHTS[:-1], f"has {len(WEIGHTS) - 1} bytes, and its header says {len(WEIGHTS)}"),
        ("model.safetensors", WEIGHTS + b"\0", "is damaged"),
        ("model.safetensors", b"\xff" * 100, "is damaged"),
        ("model.safetensors", b"\2\0\0\0\0\0\0\0[]", "is damaged"),
        ("model-2.safetensors", WEIGHTS[:12], r"/tiny/model-2\.safetensors is damaged"),
    ],
)
def test_a_damaged_base_is_invalid_before_a_child_starts(bench: Bench, file: str, content: bytes, words: str) -> None:
    (bench.models / "tiny" / file).write_bytes(content)
    with pytest.raises(Invalid, match=words):
        list(bench.train(FakeLauncher()))


def test_job_and_budget_are_those_of_the_item(bench: Bench, tmp_path: Path, put_dataset: Any, examples: Any) -> None:
    bench.datasets["more"] = put_dataset(bench.store, tmp_path / "more", "more", examples(12, "more"))
    recipe = {
        "seed": 5,
        "seeds": 2,
        "variants": {
            "v": {"train": "remarks"},
            "w": {"train": ["more", {"more": 1, "remarks": 2}], "training": {"learning_rate": 0.01}},
        },
    }
    launcher = FakeLauncher(finishes)
    list(bench.train(launcher, bench.request("w.seed6", recipe)))
    (job,) = launcher.jobs
    assert (job.run, job.item, job.seed, job.training.learning_rate) == ("r", "w.seed6", 6, 0.01)
    assert job.budget_stages == ({"remarks": 1.0},), "the first variant's"
    assert job.stages == ({"more": 1.0}, {"more": 1.0, "remarks": 2.0})
    assert job.datasets.keys() == {"more", "remarks"}


def test_the_order_of_examples_does_not_depend_on_what_else_is_in_the_plan(bench: Bench) -> None:
    launcher = FakeLauncher(finishes, finishes)
    list(bench.train(launcher, bench.request("v")))
    list(bench.train(launcher, bench.request("v.seed17", {"seeds": 2})))
    alone, among_seeds = launcher.jobs
    assert alone.shuffle == among_seeds.shuffle
