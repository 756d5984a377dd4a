"""Settings of the trainer."""

from __future__ import annotations

from pydantic import Field

from understudy.service import machine
from understudy.settings import Settings


class TrainerSettings(Settings):
    """What the trainer needs beyond the shared settings."""

    threads: int = Field(default_factory=lambda: min(2, machine.cores()), ge=1, le=256)
    """CPU threads of one training. Part of its result: sums are split by thread, so another number gives other last bits."""
