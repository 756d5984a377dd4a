"""The validation loss: how a training does, at its checkpoints, on rows that it never learns from.

    pick       which rows of each dataset are watched: few enough that watching costs little
    watched    these rows, tokenised
    watcher    measures at checkpoints and at the end, where the curve survives a kill
    best       the step with the lowest loss

Draws from no random state and leaves the model as it found it: the weights that a training ends with do not depend on whether it
was watched. Does not decide which weights are kept (`train.py`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.data import Corpus, Draw, Row, tokenize
from services.trainer.job import Job
from understudy.errors import Invalid
from understudy.records import Example, pick_jsonl

SHARE = 0.1
"""Rows watched for each example trained on. To watch one takes 0.4 of the time of learning from it, so this is about 4 % of all."""
FEWEST, MOST = 32, 256
"""Rows watched at once. Where checkpoints lie so close that `SHARE` allows fewer than `FEWEST`, some checkpoints are not watched.
Of a training of fewer than `FEWEST / SHARE` examples, fewer rows are."""


@dataclass(frozen=True)
class Watched:
    """The rows that are watched, by dataset."""

    rows: dict[str, list[Row]]
    """None of them is empty."""
    seen: Mapping[str, int]
    """Examples of each dataset in the whole training."""
    every: int
    """Checkpoints from one look to the next."""
    most_tokens: int
    """Of a batch, padding included: what the largest batch of the training has."""

    def mean(self, sums: Mapping[str, float]) -> float:
        """Nats per token of the answers from their sums by dataset: what the training loss would be on unseen rows.

        A dataset's rows weigh as much as the training sees of it: sum(w * nats) / sum(w * tokens), w = examples seen / rows watched.
        """
        weights = {name: self.seen[name] / len(rows) for name, rows in self.rows.items()}
        tokens = sum(weights[name] * answer_tokens(rows) for name, rows in self.rows.items())
        return sum(weights[name] * sums[name] for name in self.rows) / tokens


def pick(available: Mapping[str, int], between: int, whole: int) -> tuple[dict[str, int], int]:
    """How many of each dataset's rows are watched, and at every which checkpoint.

    `between` two checkpoints are so many examples, in the `whole` training so many.
    Datasets have equal shares; what one of them lacks, others may have.
    """
    allowed = SHARE * between
    every = max(1, math.ceil(min(FEWEST, sum(available.values())) / allowed))
    left = min(MOST, int(allowed * every), max(1, int(SHARE * whole)))  # the end is watched in any case
    picked = {}
    for number, name in enumerate(sorted(available, key=lambda name: (available[name], name))):
        picked[name] = min(available[name], math.ceil(left / (len(available) - number)))
        left -= picked[name]
    return picked, every


def watched(
    job: Job, corpora: Mapping[str, Corpus], order: Sequence[Draw], tokenizer: Any, stops: frozenset[int]
) -> Watched | None:
    """The validation rows of the datasets that the job trains on; None when it has none short enough.

    Which ones follows from the data alone, so that trainings with other seeds or mixes watch the same. Raises `Invalid` when the
    best checkpoint shall be kept and nothing can be watched.
    """
    seen = Counter(draw.dataset for draw in order)
    files = {name: job.datasets[name].folder / "validation.jsonl" for name in sorted(seen)}
    available = {name: _lines(file) for name, file in files.items() if file.is_file()}
    picked, every = pick(available, job.training.checkpoint_every * job.training.batch_size, len(order))
    rows = {}
    for name, count in picked.items():
        shuffled = list(range(available[name]))
        random.Random("watched").shuffle(shuffled)
        examples = pick_jsonl(files[name], Example, set(shuffled[:count])).values()
        if fitting := tokenize(examples, tokenizer, stops, job.training.max_length).rows:
            rows[name] = fitting
    if not rows and job.training.keep == "best":
        raise Invalid(
            f"`training.keep: best`: no validation row of {', '.join(seen)} has at most {job.training.max_length} tokens",
            "Raise `datasets.NAME.rows.validation` or `training.max_length`, or use `keep: last`.",
        )
    lengths = [len(corpora[draw.dataset].rows[draw.row].ids) for draw in order]
    batches = (lengths[start : start + job.micro_batch] for start in range(0, len(lengths), job.micro_batch))
    return Watched(rows, seen, every, max(len(batch) * max(batch) for batch in batches)) if rows else None


def batches(rows: Sequence[Row], most_tokens: int) -> Iterator[list[Row]]:
    """All rows by length, at most so many tokens at once with their padding, or a single row."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (len(batch) + 1) * len(row.ids) > most_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def answer_tokens(rows: Sequence[Row]) -> int:
    """Tokens that the loss sees."""
    return sum(len(row.ids) - row.answer for row in rows)


def watcher(trainer: Any, rows: Watched, *, keep_best: bool) -> Any:
    """A TrainerCallback that measures before a checkpoint is written, and puts what it found into the history that is part of it.

    An entry has `step`, `validation_loss`, and `by_dataset` with the loss of each. With `keep_best`, the checkpoint with the lowest loss
    so far is the one that transformers does not remove.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if not control.should_save or (step % (rows.every * args.save_steps) and step < state.max_steps):
                return
            sums = {name: _nats(trainer, each, rows.most_tokens) for name, each in rows.rows.items()}
            loss = rows.mean(sums)
            if not math.isfinite(loss):
                raise Invalid(f"The validation loss became {loss} at step {step}", "Lower `training.learning_rate`.")
            of_each = {name: round(sums[name] / answer_tokens(each), 6) for name, each in rows.rows.items()}
            state.log_history.append({"step": step, "validation_loss": round(loss, 6), "by_dataset": of_each})
            if keep_best:
                state.best_global_step = best(state.log_history)["step"]

    return Watcher()


def best(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry with the lowest validation loss, the earliest of several."""
    return min((entry for entry in history if "validation_loss" in entry), key=lambda entry: entry["validation_loss"])


def _nats(trainer: Any, rows: Sequence[Row], most_tokens: int) -> float:
    """The loss that the training takes, summed over the answers of `rows`."""
    import torch

    model, total = trainer.model, 0.0
    learning = model.training
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for batch in batches(rows, most_tokens):
            collated = trainer.data_collator([{"input_ids": list(row.ids), "labels": row.labels} for row in batch])
            inputs = {name: tensor.to(model.device) for name, tensor in collated.items()}
            total += trainer.compute_loss(model, inputs, num_items_in_batch=1).item()
    model.train(learning)
    return total


def _lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
