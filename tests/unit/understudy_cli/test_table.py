"""Proves that a report reads well in a terminal: marks, units, who is missing, and what it says in words."""

from __future__ import annotations

import io

from rich.console import Console

from understudy.belt.folds.views import ItemState
from understudy.plan import Plan, PlannedBase, make
from understudy.recipe import parse
from understudy.report import Cell, Report, Verdict
from understudy.testing import report_of, run_of
from understudy_cli.table import comparison, summary


def plan(*variants: str, base: tuple[str, ...] = ("seedling",)) -> Plan:
    document = {
        "base": list(base),
        "datasets": {"d": {"source": "d.csv"}},
        "variants": {v: {"train": "d"} for v in variants},
    }
    return make(parse(document, "test"), lambda name: PlannedBase(name=name, reference=name))


def cell(value: float, delta: float | None = None, verdict: Verdict | None = None) -> Cell:
    return Cell(
        n=100, value=value, low=value, high=value, delta=delta, delta_low=delta, delta_high=delta, verdict=verdict
    )


def shown(report: Report, **items: ItemState) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(comparison(report, run_of(**items)))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def perplexity() -> Report:
    cells = {
        "base": cell(12.3),
        "a": cell(20_000, 19_987.7, "worse"),
        "b": cell(12.2, -0.1, "no clear difference"),
    }
    return report_of(
        plan("a", "b", "gone", "dropped"),
        cells,
        metric="perplexity",
        panel="general",
        failed=["gone"],
        cancelled=["dropped"],
    )


def test_the_table_marks_each_cell_and_names_who_is_missing() -> None:
    """▼ and · as the report judged, large numbers stay readable, a failed or cancelled item has no column but a line."""
    text = shown(perplexity(), gone=ItemState(stage="failed", reason="it fell off"))
    row = next(line for line in text.splitlines() if "perplexity" in line)
    assert "perplexity ↓" in row
    assert "12.3 [12.3 – 12.3]" in row
    assert "20000 [20000 – 20000] ▼" in row
    assert "12.2 [12.2 – 12.2] ·" in row
    assert "gone FAILED: it fell off" in text
    assert "dropped was cancelled." in text
    assert "Against the base: ▲ better" in text


def test_the_summary_says_what_was_lost_and_what_is_unclear() -> None:
    """A sentence per item that was compared, with the figures behind it; none for the base and for the failed."""
    assert summary(perplexity()).splitlines() == [
        "a: Lost on general.",
        "  general: perplexity rose from 12.3 to 20000 (+19988, 95 % interval +19988 to +19988).",
        "b: No clear difference from the base.",
        "  general: perplexity: no clear difference.",
    ]


def test_where_the_base_fails_by_format_the_summary_opens_with_that() -> None:
    cells = {"base": cell(0.01), "a": cell(0.65, 0.64, "better")}
    report = report_of(plan("a"), cells, n=200, unread={"base": 198})
    first = summary(report).splitlines()[0]
    assert first.startswith("On in-domain, 198 of 200 answers of the base name no class")
    assert "is not known" in first, "and nobody asked which class it finds most likely"
    panel = report.panels[0]
    likely = panel.metrics[0].model_copy(
        update={"reading": "likeliest", "cells": {"base": cell(0.6), "a": cell(0.65, 0.05, "no clear difference")}}
    )
    both = report.model_copy(update={"panels": (panel.model_copy(update={"metrics": (*panel.metrics, likely)}),)})
    first = summary(both).splitlines()[0]
    assert "accuracy rose from 60.0 % to 65.0 % (+5.0 points" in first
    assert first.endswith("which is no clear difference.")
    assert "accuracy by likelihood ↑" in shown(both)


def test_what_was_written_and_what_is_likeliest_are_never_mixed_up() -> None:
    """Written worse and by likelihood better: the opening speaks of a gain without format, and the headline of a loss."""
    report = report_of(
        plan("a"), {"base": cell(0.6), "a": cell(0.05, -0.55, "worse")}, n=200, unread={"base": 0, "a": 190}
    )
    panel = report.panels[0]
    likely = panel.metrics[0].model_copy(
        update={"reading": "likeliest", "cells": {"base": cell(0.6), "a": cell(0.8, 0.2, "better")}}
    )
    both = report.model_copy(update={"panels": (panel.model_copy(update={"metrics": (*panel.metrics, likely)}),)})
    opening, headline, *_ = summary(both).splitlines()
    assert "190 of 200 answers of a name no class" in opening
    assert "a's accuracy rose from 60.0 % to 80.0 %" in opening
    assert opening.endswith("which is a gain.")
    assert headline == "a: Lost on in-domain."


def test_many_variants_of_a_base_that_fails_by_format_are_one_opening() -> None:
    names = [f"v{number}" for number in range(5)]
    cells = {"base": cell(0.01)} | {name: cell(0.65, 0.64, "better") for name in names}
    text = summary(report_of(plan(*names), cells, n=200, unread={"base": 198}))
    assert text.count("198 of 200") == 1


def test_a_metric_of_a_newer_version_is_told_as_it_is() -> None:
    report = report_of(plan("a"), {"base": cell(0.5), "a": cell(0.7, 0.2, "better")}, metric="bleu", panel="general")
    panel = report.panels[0]
    row = panel.metrics[0].model_copy(update={"metric": "chrf"})
    newer = panel.model_copy(update={"metrics": (row,), "not_computed": {"comet": "the panel has no questions"}})
    text = summary(report.model_copy(update={"panels": (newer,)}))
    assert "chrf rose from 0.500 to 0.700" in text
    assert "comet on general was not computed: the panel has no questions." in text


def test_items_of_several_bases_are_held_against_their_own() -> None:
    """The legend does not name one of them; an item whose base was not scored says so."""
    two = plan("a", base=("small", "large"))
    cells = {"base@small": cell(1), "a@small": cell(2, 1, "better"), "a@large": cell(2)}
    report = report_of(two, cells, metric="bleu", panel="general")
    assert "Against its base:" in shown(report)
    assert summary(report).splitlines() == [
        "a@small: Gained on general.",
        "  general: BLEU rose from 1.00 to 2.00 (+1.00, 95 % interval +1.00 to +1.00).",
        "base@large was not scored, so there is nothing to hold a@large against.",
    ]


def test_many_items_are_rows() -> None:
    """Twenty columns would be unreadable: each item has a row with its figure and mark."""
    names = [f"v{number}" for number in range(20)]
    cells = {"base": cell(1.0)} | {name: cell(2.0, 1, "better") for name in names}
    text = shown(report_of(plan(*names), cells, metric="bleu", panel="general"))
    (row,) = [line for line in text.splitlines() if "v7 " in line]
    assert "2.00 ▲" in row
    assert "general BLEU ↑" in text
