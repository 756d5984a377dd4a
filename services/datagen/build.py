"""From a pool to a finished dataset folder: choose validation and training rows, have examples made, write files.

Does not read sources (`pools.py`), make examples (`tasks/`) nor know the artifact store (`handlers.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from services.datagen.filters import Candidate, reasons
from services.datagen.pace import Say
from services.datagen.pools import Pool
from services.datagen.splits import choose_rest
from services.datagen.tasks.task import Made, Models, Order
from understudy.belt.contracts import Progress
from understudy.belt.scratch import forget, take_up
from understudy.errors import Invalid
from understudy.records import SPLITS, DatasetCard, Example, Rejected, write_json, write_jsonl

ROWS = Counter("understudy_datagen_rows", "Rows of datasets that are made: kept, or rejected on the way", ["outcome"])
KEPT, REJECTED = ROWS.labels("kept"), ROWS.labels("rejected")


@dataclass(frozen=True)
class Builder:
    """Makes dataset folders under `work`, where what was paid for stays until the dataset is stored.

    Safe in several threads, as long as no run is in two of them.
    """

    work: Path
    models: Models

    def build(
        self, run: str, pool: Pool, held_out: frozenset[str], seed: int, say: Say
    ) -> Generator[Progress, None, Path]:
        """The finished folder of one dataset; remove it with `forget` once it is stored.

        Test rows are written first, then validation, then training rows: what a budget does not cover is missing from the last.
        """
        name, asked = pool.wanted.name, pool.wanted.counts()
        splits = {"test": pool.test}
        if asked:
            splits["validation"], splits["train"] = choose_rest(pool.candidates, asked, held_out, seed)
        chosen = [candidate for split in splits.values() for candidate in split]
        work, order = take_up(self.work, run, name), Order(name, pool.wanted.source, pool.labels, seed)
        made = yield from pool.wanted.task.make(order, chosen, work, self.models, say)

        examples = {
            split: [each for row in picked for each in _examples(made, row)] for split, picked in splits.items()
        }
        lost = [row for row in made.values() if isinstance(row, Rejected)]
        if wasted := [split for split in splits if splits[split] and not examples[split]]:
            what = f"Dataset `{name}`: no {wasted[-1]} row could be made{reasons(lost)}"
            raise Invalid(what, "Raise the budget or change the generator.")
        rejected = sorted([*pool.rejected, *lost], key=lambda row: row.row)
        counts = {split: len(examples.get(split, ())) for split in SPLITS}
        sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
        short = len(chosen) < sum(asked.values())
        few = f", fewer than asked for: the source has only {len(pool.candidates):,} usable rows" if short else ""
        yield say(
            step=f"{name}: {sizes}{few}",
            done=len(chosen) - len(lost),
            total=len(chosen),
            figures={"rejected": len(rejected)},
        )

        folder = work / "dataset"
        KEPT.inc(sum(counts.values()))
        REJECTED.inc(len(rejected))
        shutil.rmtree(folder, ignore_errors=True)  # of a delivery that was cut short
        folder.mkdir(parents=True)
        for split in SPLITS:
            write_jsonl(folder / f"{split}.jsonl", examples.get(split, ()))
        write_jsonl(folder / "rejected.jsonl", rejected)
        card = DatasetCard(
            name=name,
            source=pool.source,
            task=pool.wanted.kind,
            labels=pool.labels,
            rows=counts,
            rejected=len(rejected),
            seed=seed,
        )
        write_json(folder / "card.json", card)
        return folder

    def forget(self, *unit: str) -> None:
        """Remove the unfinished work of a (run, dataset), or of a run."""
        forget(self.work, *unit)


def _examples(made: Made, candidate: Candidate) -> Sequence[Example]:
    found = made[candidate.row]
    return () if isinstance(found, Rejected) else found
