"""The comparison table of a run: its items side by side, every figure with its interval.

Rows are panel x metric, columns are items; of many items each is a row, without intervals, or nobody could read it. Reads
`report.json` only; computes no statistics (the evaluator did).
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "no clear difference": ("·", "dim")}
"""Verdict of an item against the one it is compared with -> mark and style."""
MOST_COLUMNS = 8
"""Items that are columns."""


def comparison(report: dict[str, Any]) -> RenderableType:
    """Everything a person needs to see of a report in a terminal."""
    table = Table(title=f"Run {report['run']}", title_justify="left", title_style="bold", header_style="bold")
    if len(report["items"]) <= MOST_COLUMNS:
        _items_as_columns(table, report)
        intervals = "[low, high]: 95 % bootstrap interval."
    else:
        _items_as_rows(table, report)
        intervals = "Intervals are on the page."
    others = set(report["compared_with"].values())
    other = others.pop() if len(others) == 1 else "its base"
    legend = f"{intervals} Against {other}: ▲ better, ▼ worse, · no clear difference. ↑ ↓: which way is better."
    return Group(table, Text(legend, style="dim"), *map(Text, _notes(report)))


def _items_as_columns(table: Table, report: dict[str, Any]) -> None:
    for column in ("panel", "n", "metric"):
        table.add_column(column, no_wrap=True, justify="right" if column == "n" else "left")
    for name in report["items"]:
        table.add_column(name, overflow="fold")
    for panel in report["panels"]:
        for index, metric in enumerate(panel["metrics"]):
            head = (panel["name"], str(panel["n"])) if index == 0 else ("", "")
            cells = (_cell(metric["cells"].get(name), interval=True) for name in report["items"])
            table.add_row(*head, _label(metric), *cells, end_section=metric is panel["metrics"][-1])


def _items_as_rows(table: Table, report: dict[str, Any]) -> None:
    table.add_column("item", overflow="fold")
    metrics = [(panel, metric) for panel in report["panels"] for metric in panel["metrics"]]
    for panel, metric in metrics:
        table.add_column(f"{panel['name']} {_label(metric)}")
    for name in report["items"]:
        table.add_row(name, *(_cell(metric["cells"].get(name), interval=False) for _, metric in metrics))


def headline(report: dict[str, Any]) -> str:
    """One sentence per item that is compared with another: what it gained and what it lost."""
    sentences = []
    for name in report["items"]:
        if name not in report["compared_with"]:
            continue
        other = report["compared_with"][name]
        cells = [
            (panel["name"], metric["metric"], cell)
            for panel in report["panels"]
            for metric in panel["metrics"]
            if (cell := metric["cells"].get(name)) and cell.get("verdict")
        ]
        parts = [
            f"{verdict} on {len(found)} of {len(cells)} ({'; '.join(_firsts(found))})"
            for verdict in ("better", "worse")
            if (found := [entry for entry in cells if entry[2]["verdict"] == verdict])
        ]
        none = f"no clear difference from {other} on any of {len(cells)} measures"
        unknown = f"not compared, because {other} was not scored"
        sentences.append(f"{name}: {', '.join(parts) or (none if other in report['items'] else unknown)}.")
    return "\n".join(sentences)


def _label(metric: dict[str, Any]) -> str:
    return f"{metric['metric']} {'↑' if metric['higher_is_better'] else '↓'}"


def _cell(cell: dict[str, Any] | None, interval: bool) -> Text:
    if cell is None:
        return Text("-", style="dim")
    text = Text(_number(cell["value"]))
    if interval:
        text.append(f" [{_number(cell['low'])}, {_number(cell['high'])}]")
    if mark := MARKS.get(cell.get("verdict") or ""):
        text.append(f" {mark[0]}", style=mark[1])
    return text


def _firsts(found: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """The change of the first metric of each panel: the recipe names what matters most first."""
    first = {panel: (metric, cell) for panel, metric, cell in reversed(found)}
    return [_change(panel, *first[panel]) for panel in dict.fromkeys(panel for panel, _, _ in found)]


def _change(panel: str, metric: str, cell: dict[str, Any]) -> str:
    low, high = _number(cell["delta_low"], "+"), _number(cell["delta_high"], "+")
    return f"{panel} {metric} {_number(cell['delta'], '+')} [{low}, {high}]"


def _number(value: float | None, sign: str = "-") -> str:
    if value is None:
        return "?"
    size = abs(value)
    return f"{value:{sign}.3f}" if size < 10 else f"{value:{sign}.1f}" if size < 10_000 else f"{value:{sign}.2e}"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [
        f"{name}: {count} of {panel['n']} answers on {panel['name']} name no class; they count as wrong."
        for panel in report["panels"]
        for name, count in panel["parse_failures"].items()
        if count
    ]
    notes += [f"{name} FAILED: {reason}" for name, reason in report["failed"].items()]
    return notes + [f"{name} was cancelled." for name in report["cancelled"]]
