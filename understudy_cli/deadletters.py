"""`understudy deadletters list | show | replay`: messages that a station gave up, and their second try.

What is open and what was replayed is read from the bus (`understudy.belt.folds.letters`); nothing else is kept.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from understudy.belt.bus import Bus
from understudy.belt.contracts import Message, encode
from understudy.belt.folds.letters import TAKEN, TOPIC, Letter, Letters
from understudy.embedded.stackfile import running
from understudy.errors import Invalid
from understudy.settings import Settings
from understudy_cli.console import errors, output
from understudy_cli.folder import bus_of
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder

app = typer.Typer(no_args_is_help=True, help="Messages that a station gave up: list, show and replay them.")
LEFT_ALONE = {
    "replayed": "replayed before",
    "cancelled": "of cancelled work",
    "deleted": "of deleted runs",
    "unreadable": "unreadable",
}
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: everything that is known, as JSON")]


@app.command("list")
def list_(data: DataOption = None, as_json: JsonOption = False) -> None:
    """List the dead letters, oldest first.

    \b
    understudy deadletters list
    understudy deadletters list --json | jq '.[] | select(.status == "open")'

    open: waits for you. Repair what the reason says, then replay it.

    replayed: its message was published again since.

    cancelled: what it is about was cancelled since. `understudy run` takes that up again.

    deleted: its run was deleted, so nobody needs it.

    unreadable: it is no message of the belt, so there is nothing to replay.
    """
    folder = data_folder(data)
    letters = _letters(folder)
    if as_json:
        print(json.dumps([_plain(letter) for letter in letters], indent=1))
    elif letters:
        table = Table(
            "id", "when", "status", "run", "item", "station", "topic", "reason", box=None, header_style="bold"
        )
        for letter in letters:
            reason = next(iter(letter.reason.splitlines()), "")
            where = (letter.run, letter.item, letter.station, letter.topic)
            table.add_row(letter.id, _when(letter), letter.status, *where, reason)
        output().print(table)
    else:
        errors().print("No dead letters.")


@app.command(no_args_is_help=True)
def show(
    letter: Annotated[
        str, typer.Argument(metavar="ID", help="As `understudy deadletters list` has it", show_default=False)
    ],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter with its whole message.

    \b
    understudy deadletters show 3-0
    """
    found = _find(_letters(data_folder(data)), letter)
    if as_json:
        print(json.dumps(_plain(found), indent=1))
        return
    out = output()
    for name in ("id", "status", "run", "item", "topic", "partition", "offset", "station", "attempts"):
        out.print(f"{name:9} {getattr(found, name)}")
    out.print(f"{'when':9} {_when(found)}")
    out.print(f"\nreason\n{textwrap.indent(found.reason, '  ')}", soft_wrap=True)
    out.print(f"\nmessage\n{textwrap.indent(_pretty(found), '  ')}", soft_wrap=True)


@app.command(no_args_is_help=True)
def replay(
    letters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="As `understudy deadletters list` has them", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are open")] = False,
    data: DataOption = None,
) -> None:
    """Publish the messages of dead letters again, after you repaired why they died.

    \b
    understudy deadletters replay 3-0 4-2
    understudy deadletters replay --all

    The message goes through its station once more, and its run to a new report.

    What was replayed before is not published again; a message that dies once more is a new dead letter.
    """
    if bool(letters) is everything:
        raise typer.BadParameter("give the ids of dead letters, or --all, not both")
    folder = data_folder(data)
    with bus_of(folder) as bus:
        there = _read(bus) if bus else []
        if everything:
            chosen = [letter for letter in there if letter.status == "open"]
            for status, why in LEFT_ALONE.items():
                if left := sum(letter.status == status for letter in there):
                    errors().print(f"Left alone: {left} {why}.")
        else:
            chosen = [_replayable(_find(there, letter)) for letter in dict.fromkeys(letters or ())]
        runs = _publish(bus, chosen) if bus else []
    if not chosen:
        errors().print("No open dead letters.")
    elif not Settings().bus and not running(folder):
        errors().print(f"No stack is up on {folder}; `understudy up` goes on with it.")
    else:
        for run in runs:
            errors().print(f"Follow it: understudy watch {run}")


def _publish(bus: Bus, letters: Sequence[Letter]) -> list[str]:
    """Publish each message as its next attempt, once, though it may have died twice; the runs they are of."""
    published: list[Message] = []
    for letter in letters:
        assert letter.message
        if letter.message not in published:
            bus.publish(letter.message.again())
            published.append(letter.message)
        output().print(f"{letter.id} is on {letter.topic} again: {letter.run} {letter.item}".rstrip())
    return list(dict.fromkeys(message.run for message in published))


def _read(bus: Bus) -> list[Letter]:
    letters = Letters()
    for record in bus.replay((*TAKEN, TOPIC)):
        if record:
            letters.read(record)
    return letters.all()


def _letters(folder: Path) -> list[Letter]:
    with bus_of(folder) as bus:
        return _read(bus) if bus else []


def _find(letters: Sequence[Letter], name: str) -> Letter:
    for letter in letters:
        if letter.id == name:
            return letter
    raise Invalid(f"There is no dead letter `{name}`", "`understudy deadletters list` lists those there are.")


def _replayable(letter: Letter) -> Letter:
    if letter.status == "unreadable":
        raise Invalid(
            f"Dead letter {letter.id} cannot be replayed: what lay on {letter.topic} is no message of the belt ({letter.reason})",
            "Find who put it there; a newer Understudy may have, and can read it.",
        )
    if letter.status == "cancelled":
        what = f"item {letter.item} of run {letter.run}" if letter.item else f"run {letter.run}"
        raise Invalid(
            f"Dead letter {letter.id} is about {what}, which was cancelled",
            "Ask for the run again: `understudy run` takes it up.",
        )
    if letter.status == "deleted":
        raise Invalid(f"Dead letter {letter.id} is of run {letter.run}, which was deleted", "Ask for the run again.")
    if letter.status == "replayed":
        raise Invalid(
            f"Dead letter {letter.id} was replayed before",
            "Had its message died again, there would be a newer letter: `understudy deadletters list`.",
        )
    return letter


def _plain(letter: Letter) -> dict[str, object]:
    message = json.loads(encode(letter.message)) if letter.message else None
    return {**asdict(letter), "message": message, "item": letter.item}


def _pretty(letter: Letter) -> str:
    """The message as JSON over several lines; what is no JSON with everything unprintable escaped."""
    try:
        return json.dumps(json.loads(letter.value), indent=1, ensure_ascii=False)
    except ValueError:
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in letter.value)


def _when(letter: Letter) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.timestamp))
