"""`understudy cancel`: a run, or one item of it, shall end."""

from __future__ import annotations

from understudy.belt.folds.run import AT
from understudy.belt.folds.views import OVER, RunState
from understudy_cli.console import output
from understudy_cli.folder import Folder
from understudy_cli.options import DataOption, ItemArgument, KeyOption, RunArgument, ServerOption
from understudy_cli.session import data_folder, lookup


def cancel(
    run: RunArgument,
    item: ItemArgument = None,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Cancel a run, or one item of it.

    \b
    understudy cancel quickstart-0123456789
    understudy cancel quickstart-0123456789 remarks-only

    Work on it stops within a second. What was scored or served before stays, and the run gets a report on that.

    Nothing is lost: checkpoints and answers are kept, and the command that began the run takes it up again where it stood.
    """
    folder = data_folder(data)
    with lookup(server, folder, key) as source:
        state = source.run(run)
        what = f"Item {item} of run {run}" if item else f"Run {run}"
        if ended := _ended(state, item):
            output().print(f"{what} is over ({ended}): there is nothing to cancel.")
            return
        source.cancel(state, item)
    if isinstance(source, Folder):
        output().print(f"{what} is cancelled. Its report is made when a stack is up again: `understudy up`.")
    else:
        output().print(f"{what} is cancelled. How it ends: understudy watch {run}")


def _ended(state: RunState, item: str | None) -> str | None:
    """How the run or the item ended; None when it did not. Raises `Invalid` for an item that there is not."""
    if item:
        state.check_item(item)
    if item and state.items[item].stage not in AT:
        return state.items[item].stage
    return state.status if state.status in OVER else None
