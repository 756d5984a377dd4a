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
        self._said: defaultdict[str, dict[tuple[str, int], Served]] = defaultdict(dict)
        """Model -> (run, generation) -> when that served it. A base is served by many runs, an adapter by a run and its repetition."""
        self._of_run: defaultdict[str, set[str]] = defaultdict(set)
        self._deleted: dict[str, int] = {}
        self._gone: set[str] = set()
        self.version = 0
        """Grows with everything that is heard: what was made of the models before is still right while it stays."""

    def read(self, message: Message, record: Record) -> None:
        self._read(message, record)
        self.version += 1

    def _read(self, message: Message, record: Record) -> None:
        if isinstance(message, ModelServed):
            self._of_run[message.run].add(message.model)
            if message.generation > self._deleted.get(message.run, 0):
                self._add(Served(message, int(record.timestamp)))
            elif message.model not in self._models:
                self._gone.add(message.model)
        elif isinstance(message, RunDeleted):
            run, until = message.run, max(message.generation, self._deleted.get(message.run, 0))
            self._deleted[run] = until
            for name in self._of_run[run]:
                self._forget(name, run, until)

    def get(self, model: str) -> Served | None:
        """One model."""
        return self._models.get(model)

    def gone(self, model: str) -> bool:
        """Whether it was served once, and every run that served it is deleted."""
        return model in self._gone

    def all(self) -> list[Served]:
        """Every model, in the order in which this process heard of them."""
        return list(self._models.values())

    def _add(self, served: Served) -> None:
        name, by = served.message.model, (served.message.run, served.message.generation)
        before, first = self._said[name].get(by), self._models.get(name)
        if before is None or _order(served) < _order(before):
            self._said[name][by] = served
        if first is None or _order(served) < _order(first):
            self._models[name] = served
        self._gone.discard(name)

    def _forget(self, name: str, run: str, until: int) -> None:
        said = self._said[name]
        for by in [by for by in said if by[0] == run and by[1] <= until]:
            del said[by]
        if said:
            self._models[name] = min(said.values(), key=_order)
        else:
            self._gone.add(name)
            self._models.pop(name, None)


def _order(served: Served) -> tuple[int, str, int, int]:
    return served.created, served.message.run, served.message.generation, served.message.attempt
