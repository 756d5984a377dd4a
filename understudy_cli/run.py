"""`understudy run`: a recipe from the file to the comparison table.

Resumes by design: the run's id is a digest of the recipe with its files, so the same command finds the same run.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from understudy.bases import resolve
from understudy.belt.folds.runs import RunState
from understudy.errors import Invalid, disk_full
from understudy.recipe import Recipe
from understudy.settings import Settings
from understudy_cli.client import Gateway, NotThere, Runs
from understudy_cli.console import errors, output
from understudy_cli.prepare import prepare, upload
from understudy_cli.session import data_folder, interruptible, session
from understudy_cli.table import comparison, headline
from understudy_cli.watch import watch

SOME_FAILED = 3
"""Exit code when there is a report, but not of every variant."""
INTERRUPTED = (
    "Interrupted. Everything done so far is kept in {data}: run the same command again and it goes on where it stood."
)
INTERRUPTED_REMOTE = (
    "Interrupted here; the run goes on at {server}. The same command, or `understudy watch`, shows it again."
)

ServerOption = Annotated[
    str | None, typer.Option(help="Gateway to use instead of a local one, e.g. http://gpu-box:8000")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for everything a stack keeps (default: UNDERSTUDY_DATA, or .understudy here)", show_default=False
    ),
]


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file", show_default=False)],
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Your own table in place of the recipe's: FILE for its first `classify` dataset, NAME=FILE for another"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model in place of the recipe's: bundled name, folder, or owner/name@revision"),
    ] = None,
    server: ServerOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even if this run was made before")] = False,
    data: DataOption = None,
    keep_up: Annotated[
        bool, typer.Option("--keep-up", help="Go on serving the models afterwards, until Ctrl-C")
    ] = False,
) -> None:
    """Make the data, train, serve, compare: a recipe from start to report.

    \b
    understudy run recipes/quickstart.yaml
    understudy run recipes/quickstart.yaml --source my-remarks.csv
    understudy run my.yaml --source train=a.csv --base ./my-model --keep-up
    understudy run my.yaml --server http://gpu-box:8000

    Interrupt it at any time: the same command resumes. Once finished, the same command shows the result again at once.
    Exit code: 0 all variants compared, 3 some failed, 1 no report, 130 interrupted.
    """
    out, err, folder = output(), errors(), data_folder(data)
    models = None if server else Settings().models
    ready = prepare(recipe, source or (), base, models)
    if models:
        resolve(ready.base, models)  # says at once what would only fail after the services are up
    note = INTERRUPTED_REMOTE.format(server=server) if server else INTERRUPTED.format(data=folder)
    with interruptible(note), session(server, folder, err) as at, Gateway(at.url) as gateway:
        ready = upload(ready, gateway.upload)
        state = begin(gateway, ready, fresh, err)
        state = watch(gateway, state, err, at.check) if state.status != "finished" else state
        code = show_report(gateway, state, folder, out)
        if keep_up and at.stack:
            err.print(f"\nServing on {at.url}/v1 until Ctrl-C.")
            with interruptible(code=code):
                at.stack.wait()
    raise typer.Exit(code)


def begin(gateway: Gateway, recipe: Recipe, fresh: bool, err: Console) -> RunState:
    """Ask for the run, or find it: the latest attempt counts, unless it failed or a fresh one is wanted."""

    def say(line: str) -> None:
        err.print(line)

    state, attempt = None, ""
    for number in count(1):
        attempt = str(number) if number > 1 else ""
        try:
            found = gateway.run(recipe.run_id(attempt))
        except NotThere:
            break
        state = found
    if state and not fresh and state.status != "failed":
        say(
            f"Run {state.id} {'was finished before; --fresh starts anew.' if state.status == 'finished' else 'goes on.'}"
        )
        return state
    if state and not fresh:
        say(f"Run {state.id} failed: {state.reason} Trying again.")
    state = gateway.start(recipe, attempt)
    say(f"Run {state.id}{f' (attempt {attempt})' if attempt else ''} started.")
    return state


def show_report(source: Runs, state: RunState, data: Path, out: Console) -> int:
    """Print the table, headline and page of a run that is over; returns the exit code. Raises `Invalid` when there is no report."""
    if state.status != "finished":
        raise Invalid(
            f"Run {state.id} failed: {state.reason}"
            if state.status == "failed"
            else f"Run {state.id} has no report yet"
        )
    report, page = source.report(state)
    out.print(comparison(report))
    out.print(f"\n{headline(report)}")
    path = report_page(data, state.id)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise disk_full(error, path) or Invalid(
            f"Cannot write {path}: {error.strerror}", "Choose another folder with --data."
        ) from error
    for name in [variant.model for variant in state.variants.values() if variant.model][-1:]:
        out.print(f"Talk to it: understudy chat {name}")
    out.print(f"Report: {path}")
    return SOME_FAILED if report["failed"] else 0


def report_page(data: Path, run: str) -> Path:
    """Where the HTML page of a run lies."""
    return data / "reports" / f"{run}.html"
