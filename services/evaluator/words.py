"""The report in words: numbers as people write them, and what each item gained and lost.

Speaks only where the statistics do: a finding is a verdict of `stats.verdict` with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.evaluator.report import Cell, PanelReport, Report
from understudy.plan import Item, Plan
from understudy.recipe import BASE, Training

SHARES = ("accuracy", "precision", "recall", "f1")
NAMES = {"f1": "F1", "bleu": "BLEU", "rougeL": "ROUGE-L"}
MINUS = "\N{MINUS SIGN}"
Kind = Literal["gained", "lost", "no clear difference"]
KINDS: dict[str | None, Kind] = {"better": "gained", "worse": "lost", "no clear difference": "no clear difference"}


@dataclass(frozen=True)
class Finding:
    """What one item gained, or lost, or neither, on one panel."""

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


def findings(report: Report, item: str) -> list[Finding]:
    """All findings of one item: gains first, then losses, then what stayed open."""
    found = [
        _finding(kind, panel, report, item)
        for kind in ("gained", "lost", "no clear difference")
        for panel in report.panels
    ]
    return [finding for finding in found if finding]


def headline(report: Report, item: str) -> str:
    """One sentence: `Gained on in-domain, lost on general`."""
    by_kind = {kind: listed([f.panel for f in findings(report, item) if f.kind == kind]) for kind in KINDS.values()}
    parts = [f"{kind} on {panels}" for kind in ("gained", "lost") if (panels := by_kind[kind])]
    sentence = ", ".join(parts) or f"no clear difference from {the(report.compared_with[item])}"
    return sentence[0].upper() + sentence[1:]


def the(item: str) -> str:
    """An item that others are held against, within a sentence."""
    return "the base" if item == BASE else item


def others(report: Report, plan: Plan) -> str:
    """What items are held against, in a sentence about all of them."""
    found = [plan.item(name) for name in sorted(set(report.compared_with.values()))]
    if len(found) == 1:
        return the(found[0].name)
    return "what it is compared with" if any(item.stages or item.model for item in found) else "its base"


def compared(report: Report) -> list[str]:
    """The items that are held against another one that was scored too."""
    return [item for item in report.items if report.compared_with.get(item) in report.items]


def subject(report: Report, plan: Plan) -> str:
    """What was scored: `2 fine-tuned variants`."""
    kinds = {"fine-tuned variant": 0, "untouched base": 0, "served model": 0}
    for item in (plan.item(name) for name in report.items):
        kinds["fine-tuned variant" if item.stages else "served model" if item.model else "untouched base"] += 1
    return listed([f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in kinds.items() if count])


def bases(report: Report, plan: Plan) -> list[str]:
    """Names of the base models of what was scored."""
    return list(dict.fromkeys(plan.base_of(plan.item(name)).name for name in report.items))


def trainings(report: Report, plan: Plan) -> list[tuple[str, Training]]:
    """(items, settings) for each of the settings that items were trained with; no items where all have the same."""
    groups: dict[str, list[Item]] = {}
    for item in plan.items:
        if item.training and item.name in report.items:
            groups.setdefault(item.training.model_dump_json(), []).append(item)
    alike = len(groups) == 1
    return [("" if alike else listed([i.name for i in g]), g[0].training) for g in groups.values() if g[0].training]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def caveats(report: Report) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    for missing in dict.fromkeys(other for other in report.compared_with.values() if other not in report.items):
        held = [item for item, other in report.compared_with.items() if other == missing]
        said.append(
            "The base model was not scored, so there is nothing to hold the variants against: no differences are shown."
            if missing == BASE
            else f"{missing} was not scored, so there is nothing to hold {listed(held)} against."
        )
    for panel in report.panels:
        if panel.metrics and panel.n < 30:
            said.append(f"Panel {panel.name} has only {panel.n} questions; intervals from so few are too narrow.")
        for item in report.items:
            if refused := panel.refused[item]:
                said.append(
                    f"{item}: {refused} of {panel.n} questions of {panel.name} were refused and count as empty answers."
                )
            if (failures := panel.parse_failures.get(item, 0)) > panel.n / 10:
                said.append(
                    f"{item}: no class could be read from {failures} of {panel.n} answers on {panel.name}; they count as wrong."
                )
    return said


def _finding(kind: Kind, panel: PanelReport, report: Report, item: str) -> Finding | None:
    rows = [row for row in panel.metrics if item in row.cells and KINDS.get(row.cells[item].verdict) == kind]
    if not rows:
        return None
    names = [name(row.metric) for row in rows]
    if kind == "no clear difference":
        return Finding(kind, panel.name, f"{listed(names)}: no clear difference")
    lead = rows[0]
    cell, other = lead.cells[item], lead.cells[report.compared_with[item]]
    assert cell.delta is not None
    text = (
        f"{names[0]} {'rose' if cell.delta > 0 else 'fell'} from {value(lead.metric, other.value)} to "
        f"{value(lead.metric, cell.value)} ({change(lead.metric, cell.delta, cell.value, unit=True)}, "
        f"95 % interval {change_span(lead.metric, cell)})"
    )
    same = "better" if kind == "gained" else "worse"
    more = f"; {listed(names[1:])} {same} too" if names[1:] else ""
    return Finding(kind, panel.name, text + more)
