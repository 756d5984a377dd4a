"""Settings of the trainer."""

from __future__ import annotations

import os

from pydantic import Field

from understudy.settings import Settings


class TrainerSettings(Settings):
    """What the trainer needs beyond the shared settings."""

    threads: int = Field(default=min(2, os.cpu_count() or 1), ge=1, le=256)
    """CPU threads of one training. Part of its result: sums are split by thread, so another number gives other last bits."""
