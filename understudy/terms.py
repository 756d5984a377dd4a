"""The terms that everything here shares: what a message, a plan and a report are made of. Imports nothing of ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Station = Literal["datagen", "trainer", "inference", "evaluator"]
STATIONS: tuple[Station, ...] = ("datagen", "trainer", "inference", "evaluator")


class Frozen(BaseModel):
    """Immutable. Unknown keys are ignored, so that an older reader accepts an additive change."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Artifact(Frozen):
    """A finished folder in the artifact store."""

    sha256: str
    """Of its manifest, and so of every file."""
