"""The doors: which service answers which family of paths, who may come in, and whether from outside.

One table. The gateway passes families on by it and asks it which scope a request needs; what else needs to know who has what
reads it here. What is not in it is not reachable from outside. Routes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from understudy.terms import STATIONS, Scope, Station


@dataclass(frozen=True)
class Door:
    """One family of paths."""

    family: str
    """Its first two parts, e.g. `/v1/runs`; a completion's whole path."""
    station: Station
    change: Scope
    """What a key needs to change something."""
    read: Scope | None = "read"
    """What it needs to look; None: any key will do."""
    anybody: bool = False
    """Needs no key at all."""
    public: bool = True
    """Reachable through the gateway; others are for the platform only."""
    hot: bool = False
    """Goes straight to an engine, byte for byte."""
    part: str = ""
    """A part that the path has further on: another door of the same family."""

    def needs(self, method: str) -> Scope | None:
        """The scope for this way to use it."""
        return self.read if method in ("GET", "HEAD") else self.change


DOORS: tuple[Door, ...] = (
    Door("/v1/chat/completions", "inference", "inference", hot=True),
    Door("/v1/completions", "inference", "inference", hot=True),
    Door("/tokenize", "inference", "inference", hot=True),
    Door("/detokenize", "inference", "inference", hot=True),
    Door("/v1/models", "inference", "admin", part="files"),  # the adapters themselves
    Door("/v1/models", "inference", "admin", read=None),
    Door("/v1/engines", "inference", "admin"),
    Door("/v1/keys", "inference", "admin", read="admin"),
    Door("/v1/usage", "inference", "admin", read="admin"),
    Door("/v1/files", "datagen", "jobs"),
    Door("/v1/runs", "datagen", "jobs"),
    Door("/v1/fine_tuning", "trainer", "jobs"),
    Door("/v1/evals", "evaluator", "jobs"),
    Door("/v1/reports", "evaluator", "jobs"),
    Door("/login", "inference", "read", anybody=True),
    Door("/logout", "inference", "read", anybody=True),
    *(
        Door(path, station, "admin", public=False)
        for path in ("/healthz", "/readyz", "/metrics")
        for station in STATIONS
    ),
)
INTERNAL = frozenset(door.family for door in DOORS if not door.public)
"""Probes and metrics: no key, and nobody from outside."""


def family(path: str) -> str:
    """The family that a decoded path belongs to, if it is one of the table's: `/v1/runs/r/logs` -> `/v1/runs`."""
    return path if path in _WHOLE else "/".join(path.split("/", 3)[:3])


def door(path: str) -> Door | None:
    """The public door that a decoded path comes to."""
    name = family(path)
    for each in _PUBLIC.get(name, ()):
        if not each.part or each.part in path[len(name) :].split("/"):
            return each
    return None


def hot() -> frozenset[str]:
    """Paths of completions."""
    return frozenset(door.family for door in DOORS if door.hot and door.public)


def passed_on(gateway: Station = "inference") -> dict[str, Station]:
    """Family -> the service that the gateway passes it on to."""
    return {door.family: door.station for door in DOORS if door.public and door.station != gateway}


_PUBLIC: dict[str, tuple[Door, ...]] = {
    each.family: tuple(door for door in DOORS if door.family == each.family) for each in DOORS if each.public
}
_WHOLE = frozenset(_PUBLIC)
