"""Plans, and the lists of made datasets, in the artifact store: written once, read by every station."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from understudy.errors import Unsupported
from understudy.plan import FILE, Plan
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact

REMEMBERED = 64
DATASETS = "datasets.json"
_DATASETS: TypeAdapter[dict[str, Artifact]] = TypeAdapter(dict[str, Artifact])


def put_plan(store: ArtifactStore, run: str, plan: Plan) -> Artifact:
    """Store the plan of a run; the one that was there before stays, and is returned."""
    return store.find(keys.plan(run)) or _put(store, keys.plan(run), FILE, plan.model_dump_json(indent=1))


def put_datasets(store: ArtifactStore, run: str, made: Mapping[str, Artifact]) -> Artifact:
    """Store which artifact each dataset of a run is."""
    return _put(store, keys.datasets(run), DATASETS, _DATASETS.dump_json(dict(sorted(made.items())), indent=1).decode())


class Plans:
    """Reads both, each once; for many threads."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._plans: dict[str, Plan] = {}

    def get(self, artifact: Artifact) -> Plan:
        """The plan in `artifact`; raises `Unsupported` when this version cannot read it."""
        with self._lock:
            known = self._plans.get(artifact.sha256)
        if known is None:
            content = (self._store.fetch(artifact) / FILE).read_bytes()
            try:
                known = Plan.model_validate_json(content)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise Unsupported(
                    f"A plan cannot be read here: {place}: {first['msg']}", "Upgrade this replica."
                ) from None
            with self._lock:
                while len(self._plans) >= REMEMBERED:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[artifact.sha256] = known
        return known

    def datasets(self, artifact: Artifact) -> dict[str, Artifact]:
        """Dataset name -> artifact."""
        return _DATASETS.validate_json((self._store.fetch(artifact) / DATASETS).read_bytes())


def _put(store: ArtifactStore, key: str, name: str, content: str) -> Artifact:
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        (Path(folder) / name).write_text(content + "\n", encoding="utf-8")
        return store.put(key, Path(folder))
