"""`understudy watch`, `report` and `runs`: looking at what is there. Nothing is started for it."""

from __future__ import annotations

import time
import webbrowser
from typing import Annotated

import typer
from rich.table import Table

from understudy.belt.folds.views import OVER
from understudy.errors import Invalid
from understudy_cli.console import errors, output
from understudy_cli.folder import Folder
from understudy_cli.options import DataOption, KeyOption, RunArgument, ServerOption
from understudy_cli.run import report_page, show_report
from understudy_cli.session import data_folder, interruptible, lookup
from understudy_cli.watch import counts
from understudy_cli.watch import watch as follow


def watch(run: RunArgument, server: ServerOption = None, key: KeyOption = None, data: DataOption = None) -> None:
    """Follow a run until it is over: where every item is, and what it waits for.

    \b
    understudy watch quickstart-0123456789
    understudy watch quickstart-0123456789 --server http://gpu-box:8000
    """
    with interruptible(), lookup(server, data_folder(data), key) as source:
        state = source.run(run)
        if isinstance(source, Folder) and state.status not in OVER:
            raise Invalid(
                f"Run {run} is not over and no stack is up",
                "`understudy up`, or the command that began it, goes on with it.",
            )
        state = follow(source, state, output())
    if state.status == "failed":
        raise Invalid(f"Run {state.id} failed: {state.reason}")
    if state.status == "cancelled":
        raise Invalid(f"Run {state.id} was cancelled", "The command that began it takes it up again.")


def report(
    run: RunArgument,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    baseline: Annotated[str | None, typer.Option(help="Hold all items against this one", metavar="ITEM")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser")] = False,
) -> None:
    """Print the comparison table of a run, and where its page is. Of a run that goes on or was cancelled: what was scored.

    \b
    understudy report quickstart-0123456789 --open
    understudy report quickstart-0123456789 --baseline remarks-only
    """
    folder = data_folder(data)
    with lookup(server, folder, key) as source:
        code = show_report(source, source.run(run), folder, output(), baseline)
    if show:
        webbrowser.open(report_page(folder, run, baseline).as_uri())
    raise typer.Exit(code)


def runs(
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    limit: Annotated[int, typer.Option(help="So many at most", min=1, max=9_999)] = 100,
) -> None:
    """List runs, newest first.

    \b
    understudy runs
    understudy runs --server http://gpu-box:8000
    """
    folder = data_folder(data)
    with lookup(server, folder, key) as source:
        found = source.runs(limit + 1)
    owned = ("by",) if any(run.owner for run in found) else ()
    table = Table("run", "status", "started", *owned, "items", "base", box=None, header_style="bold")
    for run in found[:limit]:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        by = (run.owner,) if owned else ()
        table.add_row(run.id, run.status, started, *by, counts(run), ", ".join(run.bases))
    if found:
        output().print(table)
    else:
        errors().print(f"No runs at {server or folder} yet. Start one: understudy run recipes/quickstart.yaml")
    if len(found) > limit:
        errors().print(f"These are the newest {limit}; --limit shows more.")
