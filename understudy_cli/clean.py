"""`understudy clean`: what lies in the data folder that nobody needs any more, shown, and removed on demand.

Says what, `understudy.store.sweep` finds and removes it. Safe while services run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from understudy.store.sweep import (
    Found,
    find_cached,
    find_unnamed,
    old_work,
    remove_unnamed,
    remove_work,
    shrink_cache,
)
from understudy_cli.console import errors, output, size
from understudy_cli.folder import known, store_of
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder
from understudy_cli.watch import duration

UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it")] = False,
    grace: Annotated[float, typer.Option(metavar="HOURS", help="What is younger stays", min=1)] = 24,
    cache: Annotated[str, typer.Option(metavar="SIZE", help="So much of the cache may stay, e.g. 500MB")] = "10GiB",
    data: DataOption = None,
) -> None:
    """Show what can go, and how large it is; with --yes remove it.

    \b
    understudy clean
    understudy clean --yes --cache 1GB

    artifacts: files of the artifact store that no run and no upload names, e.g. after a crash or `understudy delete`.

    work: unfinished work on runs that are over or deleted. What an open run needs stays, however old it is.

    cache: local copies of artifacts beyond SIZE, those first that were not used for longest. They are fetched again. Copies
    used within the last hour stay, so more than SIZE may.

    Runs, models, reports and uploaded files stay: `understudy delete` is for those. Services may be up meanwhile.
    """
    folder, seconds, most = data_folder(data), grace * 3600, parse_size(cache)
    store = store_of(folder)
    with known(folder) as there:
        deleted = [run for run in there.control.deleted() if there.runs.get(run) is None]
        open_runs = {state.id for state in there.runs.open()}
    unnamed = find_unnamed(store, seconds, deleted)
    work = [found for found in old_work(folder / "work", seconds) if _run(found, folder) not in open_runs]
    cached = find_cached(folder / "cache", most)
    if not (unnamed or work or cached):
        errors().print(f"There is nothing to clean in {folder}.")
        return
    output().print(_table(artifacts=unnamed, work=work, cache=cached))
    if not yes:
        errors().print("Nothing was removed. --yes removes it.")
        return
    freed = remove_unnamed(store, unnamed, seconds) + remove_work(work, seconds) + shrink_cache(folder / "cache", most)
    output().print(f"{size(freed)} were freed.")


def parse_size(text: str) -> int:
    """Bytes in `500MB`, `1.5GiB` or `1000`."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d*)?)\s*([A-Z]*)", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise typer.BadParameter(f"`{text}` is no size; give one like 500MB or 2GiB", param_hint="--cache")
    return int(float(found[1]) * UNITS[found[2]])


def _run(found: Found, folder: Path) -> str:
    """The run that a work folder, `work/<station>/<member>/<run>/...`, is of."""
    return Path(found.path).relative_to(folder / "work").parts[2]


def _table(**kinds: Sequence[Found]) -> Table:
    table = Table("what", "count", "size", "oldest", box=None, header_style="bold")
    for kind, found in kinds.items():
        if found:
            oldest = duration(max(each.age for each in found))
            table.add_row(kind, f"{len(found):,}", size(sum(each.bytes for each in found)), oldest)
    return table
