"""The models that answer on the endpoint: every one that passed the gate, until all runs that served it are deleted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from understudy.belt.bus import Record
from understudy.belt.contracts import Message, ModelServed, RunDeleted


@dataclass(frozen=True)
class Served:
    """One model."""

    message: ModelServed
    """The first that announced it."""
    created: int
    """Seconds since the epoch, of that message."""


class Models:
    """Models by name."""

    topics = ("model-served", "run-control")

    def __init__(self) -> None:
        self._models: dict[str, Served] = {}
        self._by_run: defaultdict[str, dict[str, Served]] = defaultdict(dict)
        """Model -> run -> when that run served it. A base is served by many runs, an adapter by a run and its repetition."""
        self._deleted: dict[str, int] = {}

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, ModelServed):
            if message.generation > self._deleted.get(message.run, 0):
                served = Served(message, int(record.timestamp))
                before = self._by_run[message.model].get(message.run)
                if before is None or _of_one_run(served) < _of_one_run(before):
                    self._by_run[message.model][message.run] = served
                    self._settle(message.model)
        elif isinstance(message, RunDeleted):
            self._deleted[message.run] = max(message.generation, self._deleted.get(message.run, 0))
            for name, runs in list(self._by_run.items()):
                gone = runs.get(message.run)
                if gone and gone.message.generation <= message.generation:
                    del runs[message.run]
                    self._settle(name)

    def get(self, model: str) -> Served | None:
        """One model."""
        return self._models.get(model)

    def all(self) -> list[Served]:
        """Every model, in the order in which this process heard of them."""
        return list(self._models.values())

    def _settle(self, name: str) -> None:
        runs = self._by_run[name]
        if runs:
            self._models[name] = min(runs.values(), key=_order)
        else:
            del self._by_run[name], self._models[name]


def _of_one_run(served: Served) -> tuple[int, int]:
    """The latest generation counts, because earlier ones may be deleted without it."""
    return -served.message.generation, served.created


def _order(served: Served) -> tuple[int, str, int]:
    return served.created, served.message.run, served.message.generation
