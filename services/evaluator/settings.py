"""Settings of the evaluator, on top of those every service has."""

from __future__ import annotations

from pydantic import Field

from understudy.belt.turns import WINDOW
from understudy.settings import Settings


class EvaluatorSettings(Settings):
    """How hard the endpoint is asked, and how many items of a run ride at once."""

    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests under way at once."""
    window: int = Field(default=WINDOW, ge=1, le=1000)
    """Items of one run on the belt at once: another run waits behind no more. Holds for what is begun afterwards."""
