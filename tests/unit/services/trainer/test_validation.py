"""Which rows are watched, what their one number is, and that watching changes nothing but what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from services.trainer import checkpoints
from services.trainer.data import Corpus, Draw, Row
from services.trainer.job import Data, Job, JobFolder
from services.trainer.train import train
from services.trainer.validation import FEWEST, MOST, SHARE, Watched, batches, best, pick, watched
from understudy.bases import as_planned, planned
from understudy.errors import Invalid
from understudy.recipe import Training
from understudy.records import Example, TrainingRecord, read_json, write_jsonl

STEPS, EVERY, BATCH = 12, 3, 4
REAL = {"models": Path(__file__).resolve().parents[4] / "models", "base": "seedling"}
"""A base that can write already, and so forget."""


@pytest.fixture
def make_job(tmp_path: Path, tiny_base: Path, examples: Any) -> Callable[..., tuple[Job, JobFolder]]:
    """`make_job(name, validation, **training)`: a training of twelve steps, with a checkpoint every three and some dropout."""

    def make(
        name: str, validation: list[Example], models: Path = tiny_base, base: str = "tiny", **training: Any
    ) -> tuple[Job, JobFolder]:
        data = tmp_path / f"{name}-data"
        data.mkdir()
        write_jsonl(data / "train.jsonl", examples(BATCH * STEPS))
        write_jsonl(data / "validation.jsonl", validation)
        settings = {"batch_size": BATCH, "checkpoint_every": EVERY, "learning_rate": 2e-3, "lora": {"dropout": 0.1}}
        job = Job(
            run="r",
            item="v",
            base=as_planned(planned(base, models), models),
            datasets={"remarks": Data(folder=data, sha256="0")},
            stages=({"remarks": 1.0},),
            budget_stages=({"remarks": 1.0},),
            training=Training.model_validate(settings | training),
            seed=17,
            shuffle="17/v",
            threads=1,
            micro_batch=BATCH,
        )
        folder = JobFolder(tmp_path / name)
        return folder.prepare(job), folder

    return make


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings here are too small to be watched at each of their checkpoints, were they real."""
    monkeypatch.setattr("services.trainer.validation.SHARE", 2.0)


def unlearnt(examples: list[Example]) -> list[Example]:
    """The same with answers that become less likely the more is learnt."""
    return [
        example.model_copy(update={"completion": "The small boat went along the river until it reached the town."})
        for example in examples
    ]


def record(folder: JobFolder) -> TrainingRecord:
    return read_json(folder.adapter / "training.json", TrainingRecord)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def content(folder: JobFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.adapter.iterdir()}


@pytest.mark.parametrize(("batch", "steps"), [(16, 20), (4, 20), (16, 1), (64, 1000), (1, 1)])
@pytest.mark.parametrize("available", [{"a": 200}, {"a": 5}, {"a": 1000, "b": 10, "c": 1000}])
def test_watching_costs_at_most_its_share_of_the_training(
    monkeypatch: pytest.MonkeyPatch, batch: int, steps: int, available: dict[str, int]
) -> None:
    monkeypatch.setattr("services.trainer.validation.SHARE", SHARE)
    picked, every = pick(available, batch * steps, 100_000)
    assert all(picked[name] <= available[name] for name in available)
    assert min(FEWEST, sum(available.values())) <= sum(picked.values()) <= MOST
    assert sum(picked.values()) <= SHARE * batch * steps * every
    assert every == 1 or sum(picked.values()) <= SHARE * batch * steps * (every - 1) + FEWEST


@pytest.mark.parametrize(("whole", "rows"), [(1, 1), (32, 3), (320, 32), (800, 80)])
def test_a_training_without_a_checkpoint_on_its_way_costs_no_more_to_watch(
    monkeypatch: pytest.MonkeyPatch, whole: int, rows: int
) -> None:
    """It is looked at once, at its end; one row there always is, so that there is a loss."""
    monkeypatch.setattr("services.trainer.validation.SHARE", SHARE)
    assert pick({"a": 200}, 800, whole) == ({"a": rows}, 1)


def test_datasets_have_equal_shares_and_what_one_lacks_others_have() -> None:
    assert pick({"a": 100, "b": 100}, 25, 999)[0] == {"a": 25, "b": 25}
    assert pick({"a": 100, "b": 100, "c": 4}, 25, 999)[0] == {"a": 23, "b": 23, "c": 4}
    assert pick({"a": 100, "b": 0}, 25, 999)[0] == {"a": 50, "b": 0}
    assert pick({"a": 0}, 50, 999) == ({"a": 0}, 1)
    assert pick({}, 50, 999) == ({}, 1)


def test_a_batch_is_never_larger_than_those_of_the_training() -> None:
    rows = [Row(tuple(range(length)), 1) for length in (9, 3, 30, 4, 8, 3)]
    found = list(batches(rows, 18))
    assert [[len(row.ids) for row in batch] for batch in found] == [[3, 3, 4], [8, 9], [30]]
    assert list(batches([], 18)) == []


def test_a_dataset_weighs_as_much_as_the_training_sees_of_it() -> None:
    """Three of four examples seen are of `a`, one of whose rows is watched, with two of `b`."""
    short, long = Row((1, 2, 3), 2), Row((1, 2, 3, 4, 5), 1)
    rows = Watched({"a": [short], "b": [long, long]}, {"a": 30, "b": 10}, 1, 99)
    nats = {"a": 0.6, "b": 8.0}
    # An epoch of what the training sees: thirty answers of one token and ten of four.
    assert rows.mean(nats) == pytest.approx((30 * 0.6 + 10 * 4.0) / (30 * 1 + 10 * 4))
    assert Watched({"a": [short]}, {"a": 30}, 1, 99).mean({"a": 0.6}) == pytest.approx(0.6)


def test_the_earliest_of_the_lowest_is_the_best() -> None:
    found = [(1, 0.5), (2, 0.25), (3, 0.25), (4, 0.3)]
    history = [{"step": 1, "loss": 0.1}, *({"step": step, "validation_loss": loss} for step, loss in found)]
    assert best(history)["step"] == 2


def test_the_same_rows_are_watched_whatever_the_seed(make_job: Any, tiny_base: Path, examples: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base / "tiny")
    corpora = {"remarks": Corpus([Row((1, 2), 1)] * 3, 0)}
    order = [Draw("remarks", 0), Draw("remarks", 2)] * 10
    job, _ = make_job("v", [*examples(40), *examples(3, words=90)], max_length=80)
    tokenizer.chat_template = job.base.template.read_text()
    found = watched(job, corpora, order, tokenizer, frozenset({1}))
    other = job.model_copy(update={"seed": 3, "shuffle": "3/w"})
    assert found == watched(other, corpora, order, tokenizer, frozenset({1}))
    assert found
    assert all(len(row.ids) <= 80 for row in found.rows["remarks"])
    assert len(set(found.rows["remarks"])) > 5, "drawn from all of them"


def test_where_no_row_is_short_enough_nothing_is_watched_and_no_best_is_kept(make_job: Any, examples: Any) -> None:
    job, folder = make_job("best", examples(3, words=90), max_length=80, keep="best")
    with pytest.raises(Invalid, match=r"no validation row of remarks has at most 80 tokens\. Raise"):
        train(job, folder)


def test_watching_changes_no_weight_and_nothing_that_is_learnt(make_job: Any, examples: Any) -> None:
    """Also with dropout, which draws from the random state and must be off while watching, and on again after."""
    alone, watched_too = make_job("alone", []), make_job("watched", examples(20))
    train(*alone), train(*watched_too)
    before, after = record(alone[1]), record(watched_too[1])
    assert weights(alone[1].adapter) == weights(watched_too[1].adapter)
    assert before.loss == after.loss
    assert (before.validation, before.datasets["remarks"].validation_loss) == ((), None)
    assert "validation loss |" not in (alone[1].adapter / "README.md").read_text()
    assert [step for step, _ in after.validation] == [3, 6, 9, 12]
    first, *_, last = [loss for _, loss in after.validation]
    assert last < first, "what it learns holds for rows that it never saw"
    assert after.datasets["remarks"].validation_loss == last
    assert after.datasets["remarks"].validation_rows == 20
    assert after.kept_step is None
    readme = (watched_too[1].adapter / "README.md").read_text()
    assert f"| validation loss | {first:.3f} at step 3, {last:.3f} at step 12 |" in readme
    steps, _ = watched_too[1].steps(0)
    assert [step.validation_loss for step in steps][1:3] == [None, first]


def test_the_validation_loss_is_that_of_the_weights(make_job: Any, examples: Any, tiny_base: Path) -> None:
    """Recomputed row by row from what was written, without the trainer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from services.trainer.data import tokenize

    rows = examples(10)
    job, folder = make_job("v", rows)
    train(job, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base / "tiny")
    tokenizer.chat_template = job.base.template.read_text()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base / "tiny"), folder.adapter).eval()
    nats, tokens = 0.0, 0
    for row in tokenize(rows, tokenizer, frozenset({1}), 512).rows:
        with torch.no_grad():
            likely = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0], dim=-1)
        nats -= sum(float(likely[at - 1, row.ids[at]]) for at in range(row.answer, len(row.ids)))
        tokens += len(row.ids) - row.answer
    assert record(folder).validation[-1][1] == pytest.approx(nats / tokens, rel=1e-4)


def test_the_best_checkpoint_outlives_later_ones_and_is_what_comes_out(make_job: Any, examples: Any) -> None:
    job, folder = make_job("best", unlearnt(examples(20)), **REAL, keep="best")
    train(job, folder)
    facts = record(folder)
    assert facts.kept_step == min(facts.validation, key=lambda point: point[1])[0] == EVERY, "the rest unlearns"
    assert weights(folder.adapter) == weights(folder.checkpoints / f"checkpoint-{EVERY}")
    assert weights(folder.adapter) != weights(folder.checkpoints / f"checkpoint-{STEPS}")
    assert facts.datasets["remarks"].validation_loss == facts.validation[0][1], "of what was kept"
    assert f"| weights kept | those of step {EVERY}," in (folder.adapter / "README.md").read_text()
    last, last_folder = make_job("last", unlearnt(examples(20)), **REAL)
    train(last, last_folder)
    kept, thrown = (json.loads(content(each)["probe.json"])["probes"] for each in (folder, last_folder))
    assert kept[0]["base_logprobs"] == thrown[0]["base_logprobs"]
    assert kept[0]["adapter_logprobs"] != thrown[0]["adapter_logprobs"], "the probes are measured on what is kept"


def test_killed_at_every_checkpoint_before_and_after_it_is_written_the_bytes_are_the_same(
    make_job: Any, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = unlearnt(examples(20))
    calm, calm_folder = make_job("calm", validation, **REAL, keep="best")
    train(calm, calm_folder)
    job, folder = make_job("disturbed", validation, **REAL, keep="best")
    seal = checkpoints.seal

    def sealing(checkpoint: Path, step: int, before: bool) -> None:
        if checkpoint.name != f"checkpoint-{step}" or not before:
            seal(checkpoint)
        if checkpoint.name == f"checkpoint-{step}":
            raise KeyboardInterrupt

    for step, before in product(range(EVERY, STEPS + 1, EVERY), (True, False)):
        monkeypatch.setattr(checkpoints, "seal", partial(sealing, step=step, before=before))
        with pytest.raises(KeyboardInterrupt):
            train(job, folder)
    monkeypatch.setattr(checkpoints, "seal", seal)
    train(job, folder)
    assert content(folder) == content(calm_folder)
    assert [step for step, _ in record(folder).validation] == [3, 6, 9, 12]
    assert record(folder).kept_step == EVERY
