"""Draws a report as one HTML page that needs nothing else.

All text of models and users is escaped by the template; there is no script in the page. Computes nothing.
"""

from __future__ import annotations

from pathlib import Path

from services.evaluator import figures
from services.evaluator.stats import FEWEST_ROWS
from understudy import findings
from understudy.belt.folds.views import RunState
from understudy.report import Report

TEMPLATES = Path(__file__).with_name("web")
COLOURS = 8
LONGEST_TEXT = 1500
"""Characters of a prompt or an answer on the page; report.json has all."""


def render(report: Report, state: RunState) -> str:
    """The page; `state` says why items are missing and what the gate measured, which is no part of a report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bases = findings.bases(report)
    environment.filters["grouped"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return environment.get_template("report.html.j2").render(
        report=report,
        plan=report.plan,
        bases=bases,
        base_of={name: report.plan.base_of(report.plan.item(name)).name for name in report.items}
        if len(bases) > 1
        else {},
        others=findings.others(report),
        reasons={name: item.reason or "" for name, item in state.items.items()},
        gates={name: item.gate for name, item in state.items.items() if item.gate and name in report.items},
        prompt_panels={name for name, panel in report.plan.panels.items() if panel.prompts},
        colour={item.name: number % COLOURS for number, item in enumerate(report.plan.items)},
        words=findings,
        forest=figures.forest,
        curves=figures.curves(report.training),
        clip=clip,
        shade=shade,
        comparisons=sum(
            cell.verdict is not None for panel in report.panels for row in panel.metrics for cell in row.cells.values()
        ),
        fewest_rows=FEWEST_ROWS,
    )


def clip(text: str) -> str:
    """At most `LONGEST_TEXT` characters of `text`, saying how many are missing."""
    missing = len(text) - LONGEST_TEXT
    return text if missing <= 0 else f"{text[:LONGEST_TEXT]} … ({missing} more characters)"


def shade(row: tuple[int, ...], count: int) -> int:
    """Share of a confusion row in per cent, for the depth of its colour."""
    return round(100 * count / max(1, sum(row)))
