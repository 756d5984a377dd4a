"""What the evaluator does with messages: asks and scores a served variant, and closes a run with its report.

Any order of finished and failed variants gives one report, published with the last of them (`join.py`). Does not talk
HTTP (`predict.py`) or compute (`scoring.py`, `report.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.evaluator import join, page, report
from services.evaluator.panels import Questionnaire, card, questionnaire
from services.evaluator.predict import TEMPERATURE, Asker, Questions, answered
from services.evaluator.scoring import score
from services.evaluator.stats import seed_of
from understudy.belt.contracts import (
    Artifact,
    Message,
    ModelServed,
    Progress,
    ReportPublished,
    RunFailed,
    VariantFailed,
    VariantScored,
)
from understudy.belt.loop import Handlers
from understudy.belt.scratch import forget, take_up
from understudy.records import Prediction, Score, Scores, read_jsonl, write_jsonl
from understudy.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class Evaluator:
    """The evaluator's handlers and what they need."""

    store: ArtifactStore
    asker: Asker
    work: Path
    """Folder for unfinished work."""

    def evaluate(self, served: ModelServed) -> Iterator[Message]:
        """Ask and score one variant on every panel; yields Progress and VariantScored.

        Takes up the answers of an earlier delivery that was interrupted.
        """
        key = f"runs/{served.run}/scores/{served.variant}"
        artifact = self.store.find(key)
        if artifact is None:
            work = take_up(self.work, served.run, served.variant)
            folder = _fresh(work / "artifact")
            scores: list[Score] = []
            failures: dict[str, int] = {}
            for panel in served.recipe.evaluation.panels:
                asked = questionnaire(self.store, served.recipe, panel, served.datasets)
                yield from self._ask(served, asked, work / f"{panel}.jsonl")
                predictions = asked.label(answered(work / f"{panel}.jsonl", asked.examples))
                write_jsonl(folder / f"predictions-{panel}.jsonl", predictions)
                scores += _scores(served, asked, predictions)
                if asked.labels:
                    failures[panel] = sum(prediction.label is None for prediction in predictions)
            written = Scores(
                run=served.run,
                variant=served.variant,
                model=served.model,
                scores=tuple(scores),
                parse_failures=failures,
            )
            (folder / "scores.json").write_text(written.model_dump_json(indent=1) + "\n", encoding="utf-8")
            if served.adapter and (training := self.store.fetch(served.adapter) / "training.json").is_file():
                shutil.copyfile(training, folder / "training.json")  # the messages from here on carry no adapter
            artifact = self.store.put(key, folder)
            forget(self.work, served.run, served.variant)
        yield VariantScored(
            run=served.run, variant=served.variant, recipe=served.recipe, datasets=served.datasets, scores=artifact
        )

    def _ask(self, served: ModelServed, asked: Questionnaire, path: Path) -> Iterator[Progress]:
        questions = Questions(
            model=served.model,
            examples=asked.examples,
            max_tokens=asked.panel.max_tokens,
            seed=served.recipe.seed,
            references="perplexity" in asked.panel.metrics,
        )
        for tick in self.asker.ask(questions, path):
            yield Progress(
                run=served.run,
                station="evaluator",
                variant=served.variant,
                step=asked.name,
                done=tick.done,
                total=tick.total,
                figures={"rows_per_second": tick.rows_per_second, "eta_seconds": tick.eta_seconds},
            )

    def finish(self, finished: VariantScored | VariantFailed) -> Iterator[Message]:
        """Note how one variant ended; once all have, yields ReportPublished or RunFailed.

        A variant that ends once more, because an operator had it tried again, gives a new report on the new outcome.
        """
        run, names = finished.run, finished.recipe.all_variants()
        join.note(self.store, finished)
        ends = join.ends(self.store, run, names)
        if len(ends.scored) + len(ends.failed) < len(names):
            return
        if not ends.scored:
            reasons = "; ".join(f"{variant}: {reason}" for variant, reason in ends.failed.items())
            yield RunFailed(
                run=run, station="evaluator", reason=f"No variant could be scored. {reasons}", failed=ends.failed
            )
            return
        key = ends.report_key(run)
        artifact = self.store.find(key)
        if artifact is None:
            made = yield from self._report(finished, ends.scored, ends.failed)
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                page.write(made, Path(folder))
                artifact = self.store.put(key, Path(folder))
            if not ends.failed:  # else one may be tried again, and take up its answers
                forget(self.work, run)
        yield ReportPublished(run=run, report=artifact, failed=ends.failed)

    def _report(
        self, finished: VariantScored | VariantFailed, scored: dict[str, Artifact], failed: dict[str, str]
    ) -> Generator[Progress, None, report.Report]:
        recipe, panels = finished.recipe, []
        folders = {variant: self.store.fetch(artifact) for variant, artifact in scored.items()}
        for number, name in enumerate(recipe.evaluation.panels):
            total = len(recipe.evaluation.panels)
            yield Progress(run=finished.run, station="evaluator", step="report", done=number, total=total)
            asked = questionnaire(self.store, recipe, name, finished.datasets)
            answers = {v: tuple(read_jsonl(f / f"predictions-{name}.jsonl", Prediction)) for v, f in folders.items()}
            panels.append(report.compare(recipe, asked, answers))
        training = {v: f / "training.json" for v, f in folders.items() if (f / "training.json").is_file()}
        return report.Report(
            run=finished.run,
            recipe=recipe.model_dump(mode="json"),
            variants=tuple(scored),
            models={v: Scores.model_validate_json((f / "scores.json").read_bytes()).model for v, f in folders.items()},
            failed=failed,
            panels=tuple(panels),
            training={v: report.Training.model_validate_json(path.read_bytes()) for v, path in training.items()},
            datasets={name: card(self.store, artifact) for name, artifact in sorted(finished.datasets.items())},
            decoding={"method": "greedy", "temperature": TEMPERATURE, "seed": recipe.seed},
            versions=report.versions(),
        )

    def handlers(self) -> Handlers:
        return {ModelServed: self.evaluate, VariantScored: self.finish, VariantFailed: self.finish}


def _scores(served: ModelServed, asked: Questionnaire, predictions: list[Prediction]) -> list[Score]:
    """One panel's metrics of one variant; the same seed as in the report, so the same intervals."""
    recipe, seed = served.recipe, seed_of(served.recipe.seed, asked.name)
    answers = {served.variant: predictions}
    results = score(asked.panel.metrics, asked.labels, asked.examples, answers, recipe.evaluation.bootstrap, seed)
    return [
        Score(
            panel=asked.name,
            metric=result.measure.name,
            signature=result.measure.signature,
            n=result.n,
            value=result.values[served.variant].value,
            low=result.values[served.variant].low,
            high=result.values[served.variant].high,
            higher_is_better=result.measure.higher_is_better,
        )
        for result in results
    ]


def _fresh(folder: Path) -> Path:
    """An empty folder at this path."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
