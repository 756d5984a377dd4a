"""Coordinates of the page's drawings; the template draws them as SVG. Positions are in per cent of the drawing's width or height."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from understudy.records import TrainingRecord
from understudy.report import MetricRow

REACH = 46
"""Per cent from the zero line in the middle to the longest interval's end."""
POINTS = 120
"""A loss curve has at most so many; each is the mean of its steps."""


@dataclass(frozen=True)
class Whisker:
    """One interval of a difference: right of 50 is better."""

    item: str
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Curves:
    """Loss curves on common axes, (0, 0) top left."""

    lines: dict[str, str]
    """Item -> `x,y x,y ...` for a polyline."""
    watched: dict[str, str]
    """The same of the validation loss."""
    x_ticks: tuple[tuple[float, str], ...]
    """(position, label)."""
    y_ticks: tuple[tuple[float, str], ...]


def forest(row: MetricRow) -> list[Whisker]:
    """The differences of one metric on a scale of its own, which is the same to both sides of zero."""
    sign = 1 if row.higher_is_better else -1
    spans = {
        item: [*sorted((sign * cell.delta_low, sign * cell.delta_high)), sign * cell.delta]
        for item, cell in row.cells.items()
        if cell.delta is not None and cell.delta_low is not None and cell.delta_high is not None
    }
    reach = max((abs(number) for span in spans.values() for number in span), default=0) or 1
    place = {item: [round(50 + REACH * number / reach, 2) for number in span] for item, span in spans.items()}
    return [Whisker(item, low, at, high) for item, (low, high, at) in place.items()]


def curves(training: Mapping[str, TrainingRecord]) -> Curves | None:
    """The loss of all trainings; None when there is none."""
    means = {item: _means(entry.loss) for item, entry in training.items() if entry.loss}
    if not means:
        return None
    watched = {item: _means(entry.validation) for item, entry in training.items() if entry.validation}
    last = max(step for entry in training.values() for step, _ in (*entry.loss, *entry.validation))
    losses = [loss for points in (*means.values(), *watched.values()) for _, loss in points]
    y_values = ticks(min(losses), max(losses))
    bottom, top = y_values[0], y_values[-1]

    def line(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{100 * step / last:.2f},{100 * (top - loss) / (top - bottom):.2f}" for step, loss in points)

    x_ticks = tuple((round(100 * step / last, 2), f"{step:g}") for step in ticks(0, last) if step <= last)
    y_ticks = tuple((round(100 * (top - loss) / (top - bottom), 2), f"{loss:g}") for loss in y_values)
    return Curves(
        {item: line(points) for item, points in means.items()},
        {item: line(points) for item, points in watched.items()},
        x_ticks,
        y_ticks,
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    rough = max(high - low, 1e-6) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 10) for number in range(first, max(last, first + 1) + 1)]


def _means(loss: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` means over neighbouring steps."""
    size = math.ceil(len(loss) / POINTS)
    parts = [loss[start : start + size] for start in range(0, len(loss), size)]
    return [(sum(s for s, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]
