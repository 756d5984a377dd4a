"""The comparison table of a run: base and variants side by side, every figure with its interval.

Rows are panel x metric, columns are variants. Reads `report.json` only; computes no statistics (the evaluator did).
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from understudy.recipe import BASE

MARKS = {"better": ("▲", "green"), "worse": ("▼", "red"), "no clear difference": ("·", "dim")}
"""Verdict of a variant against the base -> mark and style."""
LEGEND = "[low, high]: 95 % bootstrap interval. Against base: ▲ better, ▼ worse, · no clear difference. ↑ ↓: which way is better."


def comparison(report: dict[str, Any]) -> RenderableType:
    """Everything a person needs to see of a report in a terminal."""
    variants = [BASE, *(name for name in report["variants"] if name != BASE)]
    table = Table(title=f"Run {report['run']}", title_justify="left", title_style="bold", header_style="bold")
    for column in ("panel", "n", "metric"):
        table.add_column(column, no_wrap=True, justify="right" if column == "n" else "left")
    for name in variants:
        table.add_column(name, overflow="fold")
    for panel in report["panels"]:
        for index, metric in enumerate(panel["metrics"]):
            head = (panel["name"], str(panel["n"])) if index == 0 else ("", "")
            cells = (_cell(metric["cells"].get(name), failed=name in report["failed"]) for name in variants)
            label = f"{metric['metric']} {'↑' if metric['higher_is_better'] else '↓'}"
            table.add_row(*head, label, *cells, end_section=metric is panel["metrics"][-1])
    return Group(table, Text(LEGEND, style="dim"), *map(Text, _notes(report)))


def headline(report: dict[str, Any]) -> str:
    """One sentence per trained variant: what it gained and what it lost."""
    sentences = []
    for name in report["variants"]:
        if name == BASE or name in report["failed"]:
            continue
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
        sentences.append(
            f"{name}: {', '.join(parts) or f'no clear difference from base on any of {len(cells)} measures'}."
        )
    return "\n".join(sentences)


def _cell(cell: dict[str, Any] | None, failed: bool) -> Text:
    if cell is None:
        return Text("failed" if failed else "-", style="dim")
    text = Text(f"{_number(cell['value'])} [{_number(cell['low'])}, {_number(cell['high'])}]")
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
    return notes + [f"{name} FAILED: {reason}" for name, reason in report["failed"].items()]
