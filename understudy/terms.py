"""The terms that everything here shares: what a message, a plan and a report are made of. Imports nothing of ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Station = Literal["datagen", "trainer", "inference", "evaluator"]
STATIONS: tuple[Station, ...] = ("datagen", "trainer", "inference", "evaluator")
Scope = Literal["inference", "jobs", "read", "admin"]
"""What an API key may do: ask models; begin and end runs, which includes reading; read; everything."""
SCOPES: tuple[Scope, ...] = ("inference", "jobs", "read", "admin")


class Frozen(BaseModel):
    """Immutable. Unknown keys are ignored, so that an older reader accepts an additive change."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Frozen):
    """A finished folder in the artifact store."""

    sha256: str
    """Of its manifest, and so of every file."""


class Gate(Frozen):
    """What the gate measured of an adapter: how it changes the log-probabilities of the probes' tokens. Effects and noise are
    root mean squares over tokens, in nats."""

    tokens: int
    effect_nats: float
    """What the adapter changes in the engine."""
    noise_nats: float
    """What changes without it: between two evaluations of the base, and between the engine's base and the trainer's."""
    trained_effect_nats: float | None = None
    """What it changed in the trainer; None for an adapter that brings no probes."""
    slope: float | None = None
    """Of the engine's effect on the trainer's, through the origin: 1 where the engine applies the adapter once and whole."""
    disagreement: float | None = None
    """The difference of the two effects relative to the trainer's."""
