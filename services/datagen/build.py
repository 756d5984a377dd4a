"""From a pool to a finished dataset folder: choose validation and training rows, write instructions, write files.

Does not read sources (`pools.py`) nor know the artifact store (`handlers.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from services.datagen.filters import MAX_REJECTED_CHARS, Candidate
from services.datagen.generate import Row, Writer
from services.datagen.pools import Pool, Say, paced, reasons
from services.datagen.splits import choose_rest
from services.datagen.templates import chance, instruct
from understudy import recipe
from understudy.belt.contracts import Progress
from understudy.belt.scratch import forget, take_up
from understudy.errors import Invalid
from understudy.records import SPLITS, DatasetCard, Example, Provenance, Rejected, Turn, write_json, write_jsonl

Made = dict[int, Example | Rejected]
"""Row in the source -> what became of it."""

ROWS = Counter("understudy_datagen_rows", "Rows of datasets that are made: kept, or rejected on the way", ["outcome"])
KEPT, REJECTED = ROWS.labels("kept"), ROWS.labels("rejected")


@dataclass(frozen=True)
class Builder:
    """Makes dataset folders under `work`, where what was paid for stays until the dataset is stored.

    Safe in several threads, as long as no run is in two of them.
    """

    work: Path
    llm_tries: int

    def build(
        self, run: str, pool: Pool, held_out: frozenset[str], seed: int, say: Say
    ) -> Generator[Progress, None, Path]:
        """The finished folder of one dataset; remove it with `forget` once it is stored.

        Test rows are written first, then validation, then training rows: what a budget does not cover is missing from the last.
        """
        name, asked = pool.wanted.name, pool.wanted.counts()
        splits = {"test": pool.test}
        if pool.wanted.dataset:
            splits["validation"], splits["train"] = choose_rest(pool.candidates, asked, held_out, seed)
        chosen = [candidate for split in splits.values() for candidate in split]
        if pool.wanted.dataset and pool.wanted.classifies() and pool.wanted.dataset.generator.kind == "llm":
            made = yield from self._ask(self._folder(run, name), pool, pool.wanted.dataset.generator, chosen, seed, say)
        else:
            made = yield from _fill(pool, chosen, seed, say)

        rows = {split: [made[candidate.row] for candidate in picked] for split, picked in splits.items()}
        examples = {split: [row for row in some if isinstance(row, Example)] for split, some in rows.items()}
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
            done=sum(counts.values()),
            total=len(chosen),
            figures={"rejected": len(rejected)},
        )

        folder = self._folder(run, name) / "dataset"
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
            task=pool.wanted.dataset.task if pool.wanted.dataset else "prompts",
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

    def _folder(self, run: str, name: str) -> Path:
        return take_up(self.work, run, name)

    def _ask(
        self, folder: Path, pool: Pool, generator: recipe.Generator, chosen: Sequence[Candidate], seed: int, say: Say
    ) -> Generator[Progress, None, Made]:
        """Examples whose instructions a language model writes, before or after the text."""
        name = pool.wanted.name
        writer = Writer(generator, pool.labels, seed, folder / "written.jsonl", self.llm_tries)
        written = yield from writer.write(
            [Row(candidate.id(name), candidate) for candidate in chosen],
            lambda done, total, figures: say(
                step=f"{name}: writing instructions", done=done, total=total, figures=figures
            ),
        )
        made: Made = {}
        for candidate, line in zip(chosen, written, strict=True):
            if line.instruction is None:
                content = candidate.text[:MAX_REJECTED_CHARS]
                made[candidate.row] = Rejected(row=candidate.row, reason=line.reason or "", content=content)
                continue
            first, second = line.instruction, candidate.text
            if chance(line.id, seed) >> 64 & 1:
                first, second = second, first
            made[candidate.row] = _example(pool, candidate, f"{first}\n\n{second}", f"llm:{generator.model}")
        return made


def _fill(pool: Pool, chosen: Sequence[Candidate], seed: int, say: Say) -> Generator[Progress, None, Made]:
    """Examples whose instructions come from templates or from the rows themselves."""
    made: Made = {}

    def make(candidate: Candidate) -> None:
        if pool.wanted.classifies():
            prompt, form = instruct(candidate.text, pool.labels, candidate.id(pool.wanted.name), seed)
            made[candidate.row] = _example(pool, candidate, prompt, f"template:{form}")
        else:
            made[candidate.row] = _example(
                pool, candidate, candidate.text, "passthrough" if pool.wanted.dataset else "prompts"
            )

    for count in paced(chosen, make):
        yield say(step=f"{pool.wanted.name}: writing instructions", done=count, total=len(chosen))
    return made


def _example(pool: Pool, candidate: Candidate, prompt: str, generator: str) -> Example:
    return Example(
        id=candidate.id(pool.wanted.name),
        prompt=(Turn(role="user", content=prompt),),
        completion=candidate.answer,
        label=candidate.label,
        provenance=Provenance(source=pool.wanted.source, row=candidate.row, generator=generator),
    )
