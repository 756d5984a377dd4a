"""A report in a terminal: its items side by side, every figure with its interval, and what that says in words.

Rows are panel x metric, columns are items; of many items each is a row, without intervals, or nobody could read it. Lays out what
`understudy/findings.py` says; computes nothing.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy import findings
from understudy.belt.folds.views import RunState
from understudy.report import Cell, MetricRow, Report

MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "no clear difference": ("·", "dim")}
"""Verdict of an item against the one it is compared with -> mark and style."""
MOST_COLUMNS = 8
"""Items that are columns."""


def comparison(report: Report, state: RunState) -> RenderableType:
    """Everything a person needs to see of a report in a terminal."""
    table = Table(title=f"Run {report.run}", title_justify="left", title_style="bold", header_style="bold")
    if len(report.items) <= MOST_COLUMNS:
        _items_as_columns(table, report)
        intervals = "[low – high]: 95 % bootstrap interval."
    else:
        _items_as_rows(table, report)
        intervals = "Intervals are on the page."
    against = f"Against {findings.others(report)}: ▲ better, ▼ worse, · no clear difference." if report.compared else ""
    legend = f"{intervals} {against} ↑ ↓: which way is better."
    return Group(table, Text(legend, style="dim"), *map(Text, _notes(report, state)))


def summary(report: Report) -> str:
    """What must be known first, then what each item gained and lost."""
    lines = findings.openings(report)
    for item in report.compared:
        lines.append(f"{item}: {findings.headline(report, item)}.")
        lines += [f"  {found.panel}: {found.text}." for found in findings.findings(report, item)]
    return "\n".join([*lines, *findings.caveats(report)])


def _items_as_columns(table: Table, report: Report) -> None:
    for column in ("panel", "n", "metric"):
        table.add_column(column, no_wrap=True, justify="right" if column == "n" else "left")
    for name in report.items:
        table.add_column(name, overflow="fold")
    for panel in report.panels:
        for index, row in enumerate(panel.metrics):
            head = (panel.name, str(panel.n)) if index == 0 else ("", "")
            cells = (_cell(row, row.cells.get(name), interval=True) for name in report.items)
            table.add_row(*head, _label(row), *cells, end_section=row is panel.metrics[-1])


def _items_as_rows(table: Table, report: Report) -> None:
    table.add_column("item", overflow="fold")
    rows = [(panel, row) for panel in report.panels for row in panel.metrics]
    for panel, row in rows:
        table.add_column(f"{panel.name} {_label(row)}")
    for name in report.items:
        table.add_row(name, *(_cell(row, row.cells.get(name), interval=False) for _, row in rows))


def _label(row: MetricRow) -> str:
    return f"{findings.name(row)} {'↑' if row.higher_is_better else '↓'}"


def _cell(row: MetricRow, cell: Cell | None, interval: bool) -> Text:
    if cell is None:
        return Text("–", style="dim")
    text = Text(findings.value(row.metric, cell.value))
    if interval:
        text.append(f" [{findings.span(row.metric, cell.low, cell.high)}]")
    if mark := MARKS.get(cell.verdict or ""):
        text.append(f" {mark[0]}", style=mark[1])
    return text


def _notes(report: Report, state: RunState) -> list[str]:
    reasons = {name: item.reason for name, item in state.items.items()}
    notes = [f"{name} FAILED: {reasons.get(name) or 'for a reason that is not known'}" for name in report.inputs.failed]
    return notes + [f"{name} was cancelled." for name in report.inputs.cancelled]
