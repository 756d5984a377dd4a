"""Word of progress, every so often, while many rows are gone through. Does not know what is done with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from understudy.belt.contracts import Progress

Say = Callable[..., Progress]
"""(step, done, total, figures) -> `Progress` of the run; `done` are rows of what is being done just now."""
PULSE = 0.5
"""Seconds between two words of progress."""
T = TypeVar("T")


def paced(items: Iterable[T], do: Callable[[T], object]) -> Iterator[int]:
    """Do something with every item; yields the count every `PULSE` seconds, and at the end."""
    count, due = 0, time.monotonic() + PULSE
    for count, item in enumerate(items, start=1):
        do(item)
        if time.monotonic() >= due:
            yield count
            due = time.monotonic() + PULSE
    yield count
