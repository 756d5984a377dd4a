"""How `understudy plan` looks in a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from understudy_cli.console import size
from understudy_cli.estimate import DISAGREEMENT, EFFICIENCY

ESTIMATED = "~"
"""Before a figure that is an estimate."""


def print_plan(found: Mapping[str, Any], out: Console) -> None:
    """Datasets, items, totals, money, panels, and how the figures came about."""
    totals = found["totals"]
    out.print(f"Plan of {found['name']}: {_count(totals['items'], 'item')}, {totals['trained']} of them trained\n")
    out.print(_datasets(found["datasets"]))
    out.print()
    out.print(_items(found["items"]))
    out.print()
    for line in (*_training(found), *_llm(found["llm"]), *_panels(found["panels"]), "", *_how(found)):
        out.print(line, soft_wrap=True)


def panel_line(panel: Mapping[str, Any]) -> str:
    """`200 rows at 10 % disagreement see 6.3 points or more`, or what else its rows can show."""
    rows, smallest, share = _count(panel["rows"], "row"), panel["smallest_difference"], f"{100 * DISAGREEMENT:.0f} %"
    if smallest is None:
        return f"{rows}, too few to show any difference"
    if panel["measured_in"] != "share of right answers":
        return f"{rows} see {smallest:.2f} standard deviations of the paired difference or more"
    if panel["disagreement"]:
        return f"{rows} at {share} disagreement see {100 * smallest:.1f} points or more"
    return (
        f"{rows}, too few to show anything at {share} disagreement; the least that can show at all is"
        f" {100 * smallest:.1f} points, when every row that differs does so in the same direction"
    )


def _datasets(datasets: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("dataset", box=None, header_style="bold")
    for column in ("rows", "rejected", "train", "validation", "test", "tokens each"):
        table.add_column(column, justify="right")
    for each in datasets:
        if "unknown" in each:
            table.add_row(each["name"], "unknown")
            continue
        mark = ESTIMATED if each["estimated"] else ""
        about = ESTIMATED if each["splits_estimated"] else ""
        splits = (f"{about}{each['splits'].get(split, 0):,}" for split in ("train", "validation", "test"))
        rejected = f"{mark}{100 * each['rejected']:.1f} %"
        tokens = f"{ESTIMATED}{each['tokens_per_row']:.0f}"
        table.add_row(each["name"], f"{mark}{each['rows']:,}", rejected, *splits, tokens)
    return table


def _items(items: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("item", "base", "trained on", box=None, header_style="bold")
    for column in ("steps", "tokens", "memory", "time"):
        table.add_column(column, justify="right")
    for item in items:
        known = [f"{ESTIMATED}{item[key]:,}" if key in item else "" for key in ("steps", "tokens")]
        memory = _range(item["memory_bytes"], size) if "memory_bytes" in item else ""
        time = _range(item["seconds"], _duration) if "seconds" in item else ""
        table.add_row(item["name"], item["base"], item["trained_on"] or "-", *known, memory, time)
    return table


def _training(found: Mapping[str, Any]) -> list[str]:
    totals, device, lines = found["totals"], found["device"], []
    where = "this machine's GPU" if device["kind"] == "gpu" else "this machine's CPU"
    if totals["seconds"]:
        time = _range(totals["seconds"], _duration)
        lines.append(
            f"Training on {where}: {ESTIMATED}{totals['steps']:,} steps, {ESTIMATED}{totals['tokens']:,} tokens,"
            f" {time}, one item after another. Starting an engine, answering and scoring come on top."
        )
    if needs := [item for item in found["items"] if "memory_bytes" in item]:
        most = max(needs, key=lambda item: item["memory_bytes"][1])
        fits = {
            "yes": "it fits",
            "in smaller passes": "the trainer will take fewer examples at once",
            "no": "it does not fit; take a smaller base, or `training.quantize: nf4`",
        }[most["fits"]]
        there = size(device["memory_bytes"])
        lines.append(f"Memory: {_range(most['memory_bytes'], size)} at worst, of {there} on {where}: {fits}.")
    dark = [f"dataset `{each['name']}`: {each['unknown']}" for each in found["datasets"] if "unknown" in each]
    dark += [item["unknown"] for item in found["items"] if "unknown" in item]
    lines += [f"Unknown: {reason}." for reason in dict.fromkeys(dark)]
    for item in found["items"]:
        for dataset, share in item.get("left_out", {}).items():
            lines.append(
                f"{item['name']} leaves out {ESTIMATED}{100 * share:.0f} % of {dataset}: longer than `max_length`."
            )
    return lines


def _llm(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    if not datasets:
        return ["Language model: none is asked, so the data costs nothing."]
    lines = []
    for each in datasets:
        bound = f"; the budget ends it at ${each['budget_usd']:g}" if each["budget_usd"] else ""
        if "unknown" in each:
            lines.append(f"{each['model']} for {each['dataset']}: price unknown, {each['unknown']}{bound}.")
        else:
            price = _range(each["usd"], lambda usd: f"${usd:,.2f}")
            lines.append(f"{each['model']} for {each['rows']:,} rows of {each['dataset']}: {price}{bound}.")
    return lines


def _panels(panels: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for panel in panels:
        mark = " (how many rows is an estimate)" if panel.get("estimated") else ""
        known = f"{panel_line(panel)}{mark}" if "rows" in panel else f"unknown, {panel['unknown']}"
        lines.append(f"Panel {panel['name']}: {known}")
    return lines


def _how(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{ESTIMATED} is an estimate: rows from the first 2,000 of each source, tokens from the first 400 of these,"
        f" counted by {found['tokens_counted_by']}."
    ]
    if flops := found["device"]["flops_per_second"]:
        low, high = (f"{100 * share:.0f}" for share in EFFICIENCY)
        lines.append(
            f"Time is an estimate: 4 operations per parameter and token, at {low} to {high} % of the"
            f" {flops / 1e9:,.0f} billion a second measured here just now, and a share for every step and start."
        )
    lines.append("Memory is an estimate: weights and adapter by their shapes, the rest by rules of thumb.")
    return lines


def _range(ends: Sequence[float], form: Any) -> str:
    low, high = (form(end) for end in ends)
    return f"{ESTIMATED}{low}" if low == high else f"{ESTIMATED}{low} to {high}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
