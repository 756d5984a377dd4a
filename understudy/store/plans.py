"""Plans, and the lists of made datasets, in the artifact store: written once, read by every station."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Literal

from understudy.plan import FILE, Plan
from understudy.records import read_json, write_json
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact, Frozen

REMEMBERED = 64
"""Plans that are kept; what a plan says never changes."""


class Datasets(Frozen):
    """`datasets.json`: which artifact each dataset of a run is."""

    format: Literal["understudy.datasets.v1"] = "understudy.datasets.v1"
    made: dict[str, Artifact]


def put_plan(store: ArtifactStore, run: str, plan: Plan) -> Artifact:
    """Store the plan of a run; the one that was there before stays, and is returned."""
    return store.find(keys.plan(run)) or _put(store, keys.plan(run), FILE, plan)


def put_datasets(store: ArtifactStore, run: str, made: Mapping[str, Artifact]) -> Artifact:
    """Store which artifact each dataset of a run is."""
    return _put(store, keys.datasets(run), "datasets.json", Datasets(made=dict(sorted(made.items()))))


class Plans:
    """Reads both; for many threads. Raises `Unsupported` when this version cannot."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._plans: dict[str, Plan] = {}

    def get(self, artifact: Artifact) -> Plan:
        """The plan in `artifact`, read once."""
        with self._lock:
            known = self._plans.get(artifact.sha256)
        if known is None:
            known = read_json(self._store.fetch(artifact) / FILE, Plan)
            with self._lock:
                while len(self._plans) >= REMEMBERED:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[artifact.sha256] = known
        return known

    def datasets(self, artifact: Artifact) -> dict[str, Artifact]:
        """Dataset name -> artifact."""
        return read_json(self._store.fetch(artifact) / "datasets.json", Datasets).made


def _put(store: ArtifactStore, key: str, name: str, document: Frozen) -> Artifact:
    with store.draft() as folder:
        write_json(folder / name, document)
        return store.put(key, folder)
