"""A report in words: numbers as people write them, and what each item gained and lost. The one place that speaks.

Says something only where the statistics do: a finding is a verdict of the report with its interval. What a model loses by format
alone is said before anything else. Does not lay anything out (the page and the command line do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.metrics import SPOKEN, known
from understudy.plan import Item
from understudy.recipe import BASE, Training
from understudy.report import Cell, MetricRow, PanelReport, Report

MINUS = "\N{MINUS SIGN}"
BY_FORMAT = 0.1
"""Share of answers without a class above which a difference in what was written may be one of format."""
FEW = 30
"""Questions below which an interval is too narrow."""
LARGE = 10_000
Kind = Literal["gained", "lost", "no clear difference"]
JUDGED: dict[str | None, str] = {
    "better": "which is a gain",
    "worse": "which is a loss",
    "no clear difference": "which is no clear difference",
}
KINDS: dict[str | None, Kind] = {"better": "gained", "worse": "lost", "no clear difference": "no clear difference"}


@dataclass(frozen=True)
class Finding:
    """What one item gained, or lost, or neither, on one panel."""

    kind: Kind
    panel: str
    text: str


def name(row: MetricRow) -> str:
    """The metric as people write it."""
    return f"{known(row.metric).title}{SPOKEN[row.reading]}"


def title(metric: str) -> str:
    """A metric that has no row, or `metric of item`."""
    name, _, whose = metric.partition(" of ")
    return f"{known(name).title} of {whose}" if whose else known(name).title


def value(metric: str, number: float) -> str:
    """A metric's value: shares in per cent, the others as they are."""
    share = known(metric).share
    return f"{_factor(metric) * number:.{_decimals(metric, number)}f}{' %' if share else ''}"


def span(metric: str, low: float, high: float) -> str:
    """An interval of values, without the unit."""
    decimals = _decimals(metric, high)
    return f"{_factor(metric) * low:.{decimals}f} – {_factor(metric) * high:.{decimals}f}"


def change(metric: str, number: float, size: float | None = None, unit: bool = False) -> str:
    """A difference with its sign; `size` is the value whose decimals it takes."""
    decimals = _decimals(metric, number if size is None else size)
    text = f"{_factor(metric) * number:+.{decimals}f}".replace("-", MINUS)
    return f"{text} points" if unit and known(metric).share else text


def change_span(metric: str, cell: Cell) -> str:
    """The interval of a difference."""
    assert cell.delta_low is not None
    assert cell.delta_high is not None
    return f"{change(metric, cell.delta_low, cell.value)} to {change(metric, cell.delta_high, cell.value)}"


def _factor(metric: str) -> int:
    return 100 if known(metric).share else 1


def _decimals(metric: str, number: float) -> int:
    """None for what is so large that nobody reads them."""
    return 0 if abs(number) >= LARGE else known(metric).decimals


def openings(report: Report) -> list[str]:
    """What a reader must know first: where models name no class, and what is left of a difference without that."""
    return [said for panel in report.panels if (said := _opening(panel, report))]


def _opening(panel: PanelReport, report: Report) -> str | None:
    failing = [item for item in report.items if _fails_by_format(panel, item)]
    held = [item for item in report.compared if item in failing or report.compared_with[item] in failing]
    if not held:
        return None
    who = listed([f"{panel.parse_failures[item]} of {panel.n} answers of {the(item)}" for item in failing])
    start = f"On {panel.name}, {who} name no class: a difference in what was written is one of format too."
    row = panel.row("accuracy", "likeliest") or next((r for r in panel.metrics if r.reading == "likeliest"), None)
    if row is None or not any(item in row.cells and row.cells[item].verdict for item in held):
        return f"{start} How much of it is, nobody can say: which class they find most likely is not known."
    without = [
        f"{item}'s {known(row.metric).title} {_moved(row, row.cells[item], row.cells[report.compared_with[item]])}, "
        f"{JUDGED[row.cells[item].verdict]}"
        for item in held
        if item in row.cells and row.cells[item].verdict
    ]
    return f"{start} By the class that each finds most likely, in which format has no part, {'; '.join(without)}."


def _fails_by_format(panel: PanelReport, item: str) -> bool:
    return panel.parse_failures.get(item, 0) > BY_FORMAT * panel.n


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


def others(report: Report) -> str:
    """What items are held against, in a sentence about all of them."""
    found = [report.plan.item(name) for name in sorted(set(report.compared_with.values()))]
    if len(found) == 1:
        return the(found[0].name)
    return "what it is compared with" if any(item.stages or item.model for item in found) else "its base"


def subject(report: Report) -> str:
    """What was scored: `2 fine-tuned variants`."""
    kinds = {"fine-tuned variant": 0, "untouched base": 0, "served model": 0}
    for item in map(report.plan.item, report.items):
        kinds["fine-tuned variant" if item.stages else "served model" if item.model else "untouched base"] += 1
    return listed([f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in kinds.items() if count])


def bases(report: Report) -> list[str]:
    """Names of the base models of what was scored."""
    return list(dict.fromkeys(report.plan.base_of(report.plan.item(item)).name for item in report.items))


def trainings(report: Report) -> list[tuple[str, Training]]:
    """(items, settings) for each of the settings that items were trained with; no items where all have the same."""
    groups: dict[str, list[Item]] = {}
    for item in report.plan.items:
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
        fewest = min((cell.n for row in panel.metrics for cell in row.cells.values()), default=FEW)
        if fewest < FEW:
            said.append(f"On {panel.name} a metric has only {fewest} questions; intervals from so few are too narrow.")
        opened = _opening(panel, report)
        for item in report.items:
            if refused := panel.refused[item]:
                said.append(
                    f"{item}: {refused} of {panel.n} questions of {panel.name} were refused and count as empty answers."
                )
            if _fails_by_format(panel, item) and not opened:
                said.append(
                    f"{item}: no class could be read from {panel.parse_failures[item]} of {panel.n} answers on {panel.name};"
                    " they count as wrong."
                )
        said += [f"{title(what)} on {panel.name} was not computed: {why}." for what, why in panel.not_computed.items()]
    if len(bases(report)) > 1 and any(panel.row("perplexity") for panel in report.panels):
        said.append("Perplexity depends on the tokenizer: it is compared only between items on the same base.")
    return said


def _finding(kind: Kind, panel: PanelReport, report: Report, item: str) -> Finding | None:
    """Of what was written: the likeliest class is spoken of where that is not to be trusted, in the openings."""
    rows = [
        row
        for row in panel.metrics
        if row.reading == "written" and item in row.cells and KINDS.get(row.cells[item].verdict) == kind
    ]
    if not rows:
        return None
    names = [name(row) for row in rows]
    if kind == "no clear difference":
        return Finding(kind, panel.name, f"{listed(names)}: no clear difference")
    lead = rows[0]
    text = f"{names[0]} {_moved(lead, lead.cells[item], lead.cells[report.compared_with[item]])}"
    same = "better" if kind == "gained" else "worse"
    more = f"; {listed(names[1:])} {same} too" if names[1:] else ""
    return Finding(kind, panel.name, text + more)


def _moved(row: MetricRow, cell: Cell, other: Cell) -> str:
    """`rose from 50.0 % to 64.0 % (+14.0 points, 95 % interval +3.1 to +24.9)`."""
    assert cell.delta is not None
    way = "rose" if cell.delta > 0 else "fell" if cell.delta < 0 else "went"
    return (
        f"{way} from {value(row.metric, other.value)} to {value(row.metric, cell.value)} "
        f"({change(row.metric, cell.delta, cell.value, unit=True)}, 95 % interval {change_span(row.metric, cell)})"
    )
