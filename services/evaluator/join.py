"""The join: how each variant of a run ended so far, and the report on it, as keys in the artifact store.

    runs/<run>/joined/<variant>          its VariantScored has arrived
    runs/<run>/failed/<variant>/<n>      its n-th different failure, station and reason
    runs/<run>/reports/<scored>-<tries>  one report for each outcome, the newest last

Nothing is ever changed: a variant that fails again gets another note, one that comes through after all is scored, and
each such outcome has a report of its own. Messages of one run arrive one after another, so an outcome with the same
counts is the same outcome. Does not make reports (`report.py`).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from understudy.belt.contracts import Artifact, VariantFailed, VariantScored
from understudy.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class Ends:
    """What the variants of a run have come to."""

    scored: dict[str, Artifact]
    """Variant -> its scores, in the order of the recipe."""
    failed: dict[str, str]
    """Variant that was never scored -> reason of its latest failure."""
    tries: int
    """Failures of those."""

    def report_key(self, run: str) -> str:
        """Of the report on exactly this outcome; a later outcome has scored more, or tried more, so its key sorts later."""
        return f"runs/{run}/reports/{len(self.scored):03}-{self.tries:03}"


def note(store: ArtifactStore, finished: VariantScored | VariantFailed) -> None:
    """Remember an end; the same one delivered again changes nothing."""
    if isinstance(finished, VariantScored):
        _leave(store, f"runs/{finished.run}/joined/{finished.variant}", {"scores": finished.scores.sha256})
        return
    content = {"station": finished.station, "reason": finished.reason}
    before = store.keys(f"runs/{finished.run}/failed/{finished.variant}")
    if not before or _read(store, before[-1]) != content:
        _leave(store, f"runs/{finished.run}/failed/{finished.variant}/{len(before) + 1:03}", content)


def ends(store: ArtifactStore, run: str, variants: tuple[str, ...]) -> Ends:
    """What was noted of `variants`; one that is neither scored nor failed is still on the belt.

    The scores themselves are stored before their message goes out: going by them alone, two messages could both see a
    complete run, and both publish its report.
    """
    scored: dict[str, Artifact] = {}
    failed: dict[str, str] = {}
    tries = 0
    for name in variants:
        scores = store.find(f"runs/{run}/scores/{name}")
        if scores and store.find(f"runs/{run}/joined/{name}"):
            scored[name] = scores
        elif notes := store.keys(f"runs/{run}/failed/{name}"):
            failed[name] = _read(store, notes[-1])["reason"]
            tries += len(notes)
    return Ends(scored, failed, tries)


def newest_report(store: ArtifactStore, run: str) -> Artifact | None:
    """The report on the latest outcome of `run`, if there is any."""
    reports = store.keys(f"runs/{run}/reports")
    return store.find(reports[-1]) if reports else None


def _read(store: ArtifactStore, key: str) -> dict[str, str]:
    artifact = store.find(key)
    assert artifact, f"{key} was listed"
    content: dict[str, str] = json.loads((store.fetch(artifact) / "end.json").read_text(encoding="utf-8"))
    return content


def _leave(store: ArtifactStore, key: str, content: dict[str, str]) -> None:
    if store.find(key) is None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "end.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            store.put(key, Path(folder))
