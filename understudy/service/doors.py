"""The doors: which service answers which family of paths, who may come in, and whether from outside.

One table. The gateway passes families on by it; what else needs to know who has what reads it here. Routes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.terms import Station

Scope = Literal["inference", "jobs", "read", "admin"]


@dataclass(frozen=True)
class Door:
    """One family of paths."""

    family: str
    """Its first two parts, e.g. `/v1/runs`; a completion's whole path."""
    station: Station
    scope: Scope
    public: bool = True
    """Reachable through the gateway; others are for the platform only."""
    hot: bool = False
    """Goes straight to an engine, byte for byte."""


DOORS: tuple[Door, ...] = (
    Door("/v1/chat/completions", "inference", "inference", hot=True),
    Door("/v1/completions", "inference", "inference", hot=True),
    Door("/tokenize", "inference", "inference", hot=True),
    Door("/detokenize", "inference", "inference", hot=True),
    Door("/v1/models", "inference", "read"),
    Door("/v1/engines", "inference", "read"),
    Door("/v1/files", "datagen", "jobs"),
    Door("/v1/runs", "datagen", "jobs"),
    Door("/v1/fine_tuning", "trainer", "jobs"),
    Door("/v1/evals", "evaluator", "jobs"),
    Door("/v1/reports", "evaluator", "read"),
    *(
        Door(path, station, "admin", public=False)
        for path in ("/healthz", "/readyz", "/metrics")
        for station in ("datagen", "trainer", "inference", "evaluator")
    ),
)


def hot() -> frozenset[str]:
    """Paths of completions."""
    return frozenset(door.family for door in DOORS if door.hot and door.public)


def passed_on(gateway: Station = "inference") -> dict[str, Station]:
    """Family -> the service that the gateway passes it on to."""
    return {door.family: door.station for door in DOORS if door.public and door.station != gateway}
