"""Settings of the evaluator, on top of those every service has."""

from __future__ import annotations

from pydantic import Field

from understudy.settings import Settings


class EvaluatorSettings(Settings):
    """How hard the endpoint is asked."""

    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests under way at once."""
