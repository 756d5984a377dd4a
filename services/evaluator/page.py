"""Writes a report's two files: `report.json`, and `report.html`, one page that needs nothing else.

All text of models and users is escaped by the template; there is no script in the page. Computes nothing.
"""

from __future__ import annotations

from pathlib import Path

from services.evaluator import figures, words
from services.evaluator.report import Report
from services.evaluator.stats import FEWEST_ROWS
from understudy.plan import Plan

TEMPLATES = Path(__file__).with_name("web")
COLOURS = 8
LONGEST_TEXT = 1500
"""Characters of a prompt or an answer on the page; report.json has all."""


def write(report: Report, folder: Path) -> None:
    """Both files into `folder`."""
    (folder / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plan = Plan.model_validate(report.plan)
    bases = words.bases(report, plan)
    environment.filters["grouped"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return environment.get_template("report.html.j2").render(
        report=report,
        plan=plan,
        bases=bases,
        base_of={name: plan.base_of(plan.item(name)).name for name in report.items} if len(bases) > 1 else {},
        compared=words.compared(report),
        others=words.others(report, plan),
        prompt_panels={name for name, panel in plan.panels.items() if panel.prompts},
        colour={item.name: number % COLOURS for number, item in enumerate(plan.items)},
        words=words,
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
