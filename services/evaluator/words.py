"""The report in words: numbers as people write them, and what each variant gained and lost.

Speaks only where the statistics do: a finding is a verdict of `stats.verdict` with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.evaluator.report import Cell, MetricRow, PanelReport, Report
from understudy.recipe import BASE

SHARES = ("accuracy", "precision", "recall", "f1")
NAMES = {"f1": "F1", "bleu": "BLEU", "rougeL": "ROUGE-L"}
MINUS = "\N{MINUS SIGN}"
Kind = Literal["gained", "lost", "no clear difference"]
KINDS: dict[str | None, Kind] = {"better": "gained", "worse": "lost", "no clear difference": "no clear difference"}


@dataclass(frozen=True)
class Finding:
    """What one variant gained, or lost, or neither, on one panel."""

    kind: Kind
    panel: str
    text: str


def name(metric: str) -> str:
    """The metric as people write it."""
    return NAMES.get(metric, metric)


def value(metric: str, number: float) -> str:
    """A metric's value: shares in per cent, the others as they are."""
    if metric in SHARES:
        return f"{100 * number:.1f} %"
    return f"{number:.{_decimals(metric, number)}f}"


def span(metric: str, low: float, high: float) -> str:
    """An interval of values, without the unit."""
    factor = 100 if metric in SHARES else 1
    decimals = _decimals(metric, high)
    return f"{factor * low:.{decimals}f} – {factor * high:.{decimals}f}"


def change(metric: str, number: float, size: float | None = None, unit: bool = False) -> str:
    """A difference with its sign; `size` is the value whose decimals it takes."""
    factor = 100 if metric in SHARES else 1
    text = f"{factor * number:+.{_decimals(metric, number if size is None else size)}f}".replace("-", MINUS)
    return f"{text} points" if unit and metric in SHARES else text


def change_span(metric: str, cell: Cell) -> str:
    """The interval of a difference."""
    assert cell.delta_low is not None
    assert cell.delta_high is not None
    return f"{change(metric, cell.delta_low, cell.value)} to {change(metric, cell.delta_high, cell.value)}"


def _decimals(metric: str, number: float) -> int:
    if metric == "rougeL":
        return 3
    return 1 if metric != "perplexity" else 2 if abs(number) < 100 else 0


def findings(report: Report, variant: str) -> list[Finding]:
    """All findings of one variant: gains first, then losses, then what stayed open."""
    found = [
        _finding(kind, panel, [row for row in panel.metrics if KINDS.get(row.cells[variant].verdict) == kind], variant)
        for kind in ("gained", "lost", "no clear difference")
        for panel in report.panels
    ]
    return [finding for finding in found if finding]


def headline(report: Report, variant: str) -> str:
    """One sentence: `Gained on in-domain, lost on general`."""
    by_kind = {kind: listed([f.panel for f in findings(report, variant) if f.kind == kind]) for kind in KINDS.values()}
    parts = [f"{kind} on {panels}" for kind in ("gained", "lost") if (panels := by_kind[kind])]
    sentence = ", ".join(parts) or "no clear difference from the base"
    return sentence[0].upper() + sentence[1:]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def caveats(report: Report) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    if BASE not in report.variants:
        said.append(
            "The base model was not scored, so there is nothing to hold the variants against: no differences are shown."
        )
    for panel in report.panels:
        if panel.metrics and panel.n < 30:
            said.append(f"Panel {panel.name} has only {panel.n} questions; intervals from so few are too narrow.")
        for variant in report.variants:
            if refused := panel.refused[variant]:
                said.append(
                    f"{variant}: {refused} of {panel.n} questions of {panel.name} were refused and count as empty answers."
                )
            if (failures := panel.parse_failures.get(variant, 0)) > panel.n / 10:
                said.append(
                    f"{variant}: no class could be read from {failures} of {panel.n} answers on {panel.name}; they count as wrong."
                )
    return said


def _finding(kind: Kind, panel: PanelReport, rows: list[MetricRow], variant: str) -> Finding | None:
    if not rows:
        return None
    names = [name(row.metric) for row in rows]
    if kind == "no clear difference":
        return Finding(kind, panel.name, f"{listed(names)}: no clear difference")
    lead = rows[0]
    cell, base = lead.cells[variant], lead.cells[BASE]
    assert cell.delta is not None
    text = (
        f"{names[0]} {'rose' if cell.delta > 0 else 'fell'} from {value(lead.metric, base.value)} to "
        f"{value(lead.metric, cell.value)} ({change(lead.metric, cell.delta, cell.value, unit=True)}, "
        f"95 % interval {change_span(lead.metric, cell)})"
    )
    same = "better" if kind == "gained" else "worse"
    others = f"; {listed(names[1:])} {same} too" if names[1:] else ""
    return Finding(kind, panel.name, text + others)
