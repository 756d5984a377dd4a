"""`understudy watch`, `report` and `runs`: looking at what is there. Nothing is started for it."""

from __future__ import annotations

import time
import webbrowser
from typing import Annotated

import typer
from rich.table import Table

from understudy.errors import Invalid
from understudy_cli.client import Folder
from understudy_cli.console import errors, output
from understudy_cli.run import DataOption, ServerOption, report_page, show_report
from understudy_cli.session import data_folder, interruptible, lookup
from understudy_cli.watch import watch as follow

RunArgument = Annotated[str, typer.Argument(help="The run's id; `understudy runs` lists them", show_default=False)]


def watch(run: RunArgument, server: ServerOption = None, data: DataOption = None) -> None:
    """Follow a run until it is over.

    \b
    understudy watch quickstart-0123456789
    understudy watch quickstart-0123456789 --server http://gpu-box:8000
    """
    with interruptible(), lookup(server, data_folder(data)) as source:
        state = source.run(run)
        if isinstance(source, Folder) and state.status in ("queued", "running"):
            raise Invalid(
                f"Run {run} is not over and no stack is up",
                "`understudy up`, or the command that began it, goes on with it.",
            )
        state = follow(source, state, output())
    if state.status == "failed":
        raise Invalid(f"Run {state.id} failed: {state.reason}")


def report(
    run: RunArgument,
    server: ServerOption = None,
    data: DataOption = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser")] = False,
) -> None:
    """Print the comparison table of a finished run, and where its page is.

    \b
    understudy report quickstart-0123456789 --open
    """
    folder = data_folder(data)
    with lookup(server, folder) as source:
        code = show_report(source, source.run(run), folder, output())
    if show:
        webbrowser.open(report_page(folder, run).as_uri())
    raise typer.Exit(code)


def runs(server: ServerOption = None, data: DataOption = None) -> None:
    """List all runs, newest first.

    \b
    understudy runs
    understudy runs --server http://gpu-box:8000
    """
    folder = data_folder(data)
    with lookup(server, folder) as source:
        states = source.runs()
    table = Table("run", "status", "started", "variants", "base", box=None, header_style="bold")
    for state in states:
        stages = ", ".join(f"{name} ({variant.stage})" for name, variant in state.variants.items())
        table.add_row(
            state.id,
            state.status,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(state.created_at)),
            stages,
            state.recipe.base,
        )
    if states:
        output().print(table)
    else:
        errors().print(f"No runs at {server or folder} yet. Start one: understudy run recipes/quickstart.yaml")
