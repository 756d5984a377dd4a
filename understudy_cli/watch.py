"""Follows a run until it is over: a live view in a terminal, one line per change anywhere else.

Survives a gateway that is restarted. Does not start or stop anything, and does not judge the outcome.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from understudy.belt.contracts import Progress
from understudy.belt.folds.run import AT
from understudy.belt.folds.views import OVER, ItemState, RunState, RunSummary
from understudy.errors import NotFound
from understudy.terms import STATIONS, Station
from understudy_cli.client import Deleted, Source, Unreachable

EVERY = 0.3
PATIENCE = 60.0
"""Seconds without an answer before we give up."""
MILESTONES = 5
"""How many plain lines one long step may take."""
MOST_ROWS = 12
"""Items of a run up to which the live view shows also those that ended."""

Show = Callable[[RunState, float, bool], None]
"""(state, seconds watched, whether the gateway is silent)"""


def watch(
    source: Source,
    state: RunState,
    console: Console,
    check: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> RunState:
    """Show the run, known as `state` so far, until it is over; returns its last state.

    `check` raises when there is no point in waiting on. Raises `Deleted` as soon as the run is, and `Unreachable` or
    `NotFound` when that is all we hear for `patience` seconds: a gateway may be restarted.
    """
    started = heard = time.monotonic()
    silent = False
    with _live(console) if console.is_terminal else _plain(console) as show:
        while True:
            show(state, time.monotonic() - started, silent)
            if state.status in OVER:
                return state
            time.sleep(EVERY)
            check()
            try:
                state, silent, heard = source.run(state.id), False, time.monotonic()
            except Deleted:
                raise
            except (Unreachable, NotFound):
                if time.monotonic() - heard > patience:
                    raise
                silent = True


@contextmanager
def _live(console: Console) -> Iterator[Show]:
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda state, elapsed, silent: live.update(view(state, elapsed, silent))


@contextmanager
def _plain(console: Console) -> Iterator[Show]:
    said: dict[str, str] = {}

    def show(state: RunState, _: float, silent: bool) -> None:
        news = {"(gateway)": ("silent", "does not answer, reconnecting")} if silent else changes(state)
        if not silent and "(gateway)" in said:
            news |= {"(gateway)": ("answers", "answers again")}
        for name, (key, line) in news.items():
            if said.get(name) != key:
                said[name] = key
                stamp = time.strftime("%H:%M:%S")
                console.print(f"{stamp} {name.strip('()')}: {line}")

    yield show


def changes(state: RunState) -> dict[str, tuple[str, str]]:
    """What to say in plain text about the run and each item: name -> (key that changes when it is worth a line, line)."""
    lines = {}
    if state.status == "cancelled":
        lines["(run)"] = ("cancelled", "cancelled")
    elif state.progress:
        lines["(run)"] = _line(state.progress.station, state.progress)
    for name, item in state.items.items():
        if item.stage == "failed":
            lines[name] = ("failed", f"failed: {item.reason}")
        elif item.stage in ("scored", "served", "cancelled"):
            lines[name] = (item.stage, item.stage)
        elif item.progress:
            lines[name] = _line(AT[item.stage], item.progress)
        elif item.reason:  # its place changes often, what it waits for does not
            lines[name] = (item.reason.partition(":")[0], item.reason)
    return lines


def _line(station: Station, progress: Progress) -> tuple[str, str]:
    share = progress.done * MILESTONES // progress.total if progress.total else 0
    counted = f" {progress.done:,}/{progress.total:,}" if progress.total else ""
    line = f"{station}: {progress.step}{counted} {figures(progress)}".rstrip()
    return f"{station}/{progress.step}/{share}", line


def view(state: RunState, elapsed: float, silent: bool) -> RenderableType:
    """The panel of one run: for each item its stations, and below them what it is doing or waiting for; fits into 80 columns.

    Of a run with many items those that ended are only counted.
    """
    table = Table.grid(padding=(0, 2))
    if state.progress and state.status not in OVER:
        table.add_row(Text("run", style="bold"), _doing(state.progress))
    ended = {name for name, item in state.items.items() if item.stage not in AT}
    if len(state.items) > MOST_ROWS and ended:
        table.add_row(Text("ended", style="bold"), Text(counts(state)))
    for name, item in state.items.items():
        if name in ended and len(state.items) > MOST_ROWS and item.stage != "failed":
            continue
        table.add_row(Text(name, style="bold", overflow="fold"), _stations(item))
        if item.progress and item.stage in AT:
            table.add_row("", _doing(item.progress))
        elif item.reason and item.stage != "waiting":
            table.add_row("", Text(item.reason, style="red" if item.stage == "failed" else "dim"))
    note = "reconnecting …" if silent else state.status
    color = {"finished": "green", "failed": "red"}.get(state.status, "yellow" if silent else "cyan")
    return Panel(table, title=Text(state.id), subtitle=f"{note} · {duration(elapsed)}", border_style=color)


def counts(state: RunSummary) -> str:
    """`3 scored, 1 failed`: how many items are in each stage, in the order of the belt."""
    order = [*AT, "served", "scored", "failed", "cancelled"]
    return ", ".join(f"{state.stages[stage]} {stage}" for stage in sorted(state.stages, key=order.index))


def _stations(item: ItemState) -> Text:
    """datagen ✓ → trainer ● → ..., in the order of the belt; what waits to be let on says for what, what ended says how."""
    if item.stage == "waiting":
        return Text(item.reason or "waiting", style="dim")
    if item.stage not in ("scored", *AT):
        return Text(item.stage, style="red" if item.stage == "failed" else "green" if item.stage == "served" else "dim")
    here = STATIONS.index(AT[item.stage]) if item.stage in AT else len(STATIONS)
    text = Text()
    for index, station in enumerate(STATIONS):
        mark, style = ("✓", "green") if index < here else ("●", "cyan") if index == here else ("·", "dim")
        text.append(f"{station} {mark}" + (" → " if index < len(STATIONS) - 1 else ""), style=style)
    return text


def _doing(progress: Progress) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.total, completed=min(progress.done, progress.total), width=20)
    counted = f"{progress.done:,}/{progress.total:,}" if progress.total else ""
    row.add_row(
        *([bar] if progress.total else []), Text(f"{progress.step} {counted}"), Text(figures(progress), style="dim")
    )
    return row


def figures(progress: Progress) -> str:
    """The figures people look for, in a fixed order; unknown ones are left out."""
    known = {
        "loss": "loss {:.3f}",
        "validation_loss": "validation {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "rows_per_second": "{:,.0f} rows/s",
        "cost_usd": "${:.2f}",
    }
    parts = [form.format(progress.figures[key]) for key, form in known.items() if key in progress.figures]
    if "seconds" in progress.figures:
        parts.append(f"for {duration(progress.figures['seconds'])}")
    if progress.figures.get("eta_seconds"):
        parts.append(f"{duration(progress.figures['eta_seconds'])} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """1:05 or 2:03:04."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
