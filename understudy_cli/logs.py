"""`understudy logs`: what happened to a run, in the order in which it did."""

from __future__ import annotations

from understudy_cli.options import DataOption, ItemArgument, KeyOption, RunArgument, ServerOption
from understudy_cli.session import data_folder, lookup


def logs(
    run: RunArgument,
    item: ItemArgument = None,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Print what happened to a run, or to one item of it: a line for each event, oldest first, then what trainings said last.

    \b
    understudy logs quickstart-0123456789
    understudy logs quickstart-0123456789 remarks-only

    It is read from the bus, so it says the same after a restart. What a service itself says is in the logs folder of the
    data folder.
    """
    with lookup(server, data_folder(data), key) as source:
        state = source.run(run)
        if item:
            state.check_item(item)
        print(source.logs(run, item).rstrip("\n"))
