"""`understudy run`: a recipe from the file to the comparison table.

Resumes by design: the run's id is a digest of the recipe with its files, so the same command finds the same run. Does not
decide what is done again: the server does.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from understudy.bases import resolve
from understudy.belt.folds.views import OVER, RunState
from understudy.errors import Invalid, NotFound, disk_full
from understudy.recipe import Recipe
from understudy.settings import Settings
from understudy_cli.client import Deleted, Gateway, Source
from understudy_cli.console import errors, output
from understudy_cli.options import BaseOption, DataOption, KeyOption, RecipeArgument, ServerOption, SourceOption
from understudy_cli.prepare import prepare, upload
from understudy_cli.session import data_folder, interruptible, session
from understudy_cli.table import comparison, summary
from understudy_cli.watch import watch

SOME_FAILED = 3
"""Exit code when there is a report, but not of every item."""
INTERRUPTED = (
    "Interrupted. Everything done so far is kept in {data}: run the same command again and it goes on where it stood."
)
INTERRUPTED_REMOTE = (
    "Interrupted here; the run goes on at {server}. The same command, or `understudy watch`, shows it again."
)


def run(
    recipe: RecipeArgument,
    source: SourceOption = None,
    base: BaseOption = None,
    server: ServerOption = None,
    key: KeyOption = None,
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

    Interrupt it at any time: the same command resumes. Once finished, the same command shows the result again at once; what
    failed or was cancelled is tried again.
    Exit code: 0 everything compared, 3 a report, but some items failed or were cancelled, 1 no report, 130 interrupted.
    `understudy plan` says beforehand what it will take.
    """
    out, err, folder = output(), errors(), data_folder(data)
    models = None if server else Settings().models
    ready = prepare(recipe, source or (), base, models)
    if models:
        for reference in ready.bases():
            resolve(reference, models)  # says at once what would only fail after the services are up
    note = INTERRUPTED_REMOTE.format(server=server) if server else INTERRUPTED.format(data=folder)
    with interruptible(note), session(server, folder, err, key) as at, Gateway(at.url, at.key) as gateway:
        ready = upload(ready, gateway.upload)
        state = begin(gateway, ready, fresh, err)
        state = watch(gateway, state, err, at.check) if state.status not in OVER else state
        code = show_report(gateway, state, folder, out)
        if keep_up and at.stack:
            err.print(f"\nServing on {at.url}/v1 until Ctrl-C.")
            with interruptible(code=code):
                at.stack.wait()
    raise typer.Exit(code)


def begin(gateway: Gateway, recipe: Recipe, fresh: bool, err: Console) -> RunState:
    """Ask for the run; the latest attempt counts, unless a fresh one is wanted. The server takes up what is not complete.

    Attempts that were deleted are passed over: a later one may still be there.
    """
    state, attempt = None, ""
    for number in count(1):
        word = str(number) if number > 1 else ""
        try:
            state, attempt = gateway.run(recipe.run_id(word)), word
        except Deleted:
            continue
        except NotFound:
            break
    if state and not fresh:
        err.print(f"Run {state.id} {standing(state)}")
        return gateway.start(recipe, attempt)
    word = word if fresh else ""
    state = gateway.start(recipe, word)
    err.print(f"Run {state.id}{f' (attempt {word})' if word else ''} started.")
    return state


def standing(state: RunState) -> str:
    """What is said about a run that is asked for again."""
    if state.status == "failed":
        return f"failed: {state.reason or 'nothing came through.'} Trying again."
    if state.status == "cancelled":
        return "was cancelled; taking it up again."
    if state.status != "finished":
        return "goes on."
    if lost := lost_items(state):
        return f"was finished before, but for {', '.join(lost)}; trying again."
    return "was finished before; --fresh starts anew."


def lost_items(state: RunState) -> list[str]:
    """Items that did not come through."""
    return [name for name, item in state.items.items() if item.stage in ("failed", "cancelled")]


def show_report(source: Source, state: RunState, data: Path, out: Console, baseline: str | None = None) -> int:
    """Print the table of a run, what it says, and where its page is; returns the exit code.

    Raises `Invalid` when there is no report, or no item `baseline` in it.
    """
    if state.report is None:
        ends = {"failed": f"failed: {state.reason}", "cancelled": "was cancelled before anything was scored"}
        raise Invalid(f"Run {state.id} {ends.get(state.status, 'has no report yet')}")
    report, page = source.report(state, baseline)
    out.print(comparison(report, state))
    out.print(f"\n{summary(report)}", highlight=False)
    if state.status != "finished":
        how = {"cancelled": "was cancelled", "failed": f"failed: {state.reason}"}.get(state.status, "goes on")
        out.print(f"The run {how}; this is what was scored.")
    path = report_page(data, state.id, baseline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise disk_full(error, path) or Invalid(
            f"Cannot write {path}: {error.strerror}", "Choose another folder with --data."
        ) from error
    for name in [item.model for item in state.items.values() if item.model][-1:]:
        out.print(f"Talk to it: understudy chat {name}")
    out.print(f"Report: {path}")
    return SOME_FAILED if state.status != "finished" or lost_items(state) else 0


def report_page(data: Path, run: str, baseline: str | None = None) -> Path:
    """Where the HTML page of a run lies."""
    return data / "reports" / f"{run}{f'.against-{baseline}' if baseline else ''}.html"
