"""`understudy keys create | list | revoke | rotate`: who may come in through the gateway.

Works on the bus that UNDERSTUDY_BUS names, else on the one in the data folder, as whoever has the machine may; with `--server`
over HTTP, with a key of the scope `admin`. A key's text is told once, alone on stdout; everything else is on stderr.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from understudy.belt import keyring
from understudy.belt.bus import Bus
from understudy.belt.bus.connect import connect
from understudy.belt.folds.keys import Key, Keys
from understudy.belt.folds.reader import Reader
from understudy.errors import Invalid, NotFound
from understudy.hints import meant
from understudy.settings import Settings
from understudy.terms import SCOPES, Scope
from understudy_cli.client import Gateway
from understudy_cli.console import errors, output
from understudy_cli.folder import bus_of
from understudy_cli.options import DataOption, KeyOption, ServerOption
from understudy_cli.session import data_folder

HELP = """API keys of the gateway: who may come in, and for what.

\b
understudy keys create --first                      yours, the first one
understudy keys create anna --scope inference       an application's
understudy keys create ci --scope jobs --days 90    what begins runs
understudy keys create tv --scope read --rpm 60     who looks at reports
understudy keys list
understudy keys rotate abcd2345 --overlap 24h
understudy keys revoke abcd2345

Each scope, and what it opens:

\b
inference  asking models: chat, completions, tokens
jobs       files, runs, trainings: begin, cancel and delete any of them;
           and all that read opens
read       looking: runs, files, engines, and reports, also in a browser
           (it asks for the key at /login)
admin      everything: keys, usage, the files of adapters

Every key sees the list of models. A key is sent as OpenAI's are:

\b
export UNDERSTUDY_API_KEY=sk-understudy-...
understudy runs --server https://gpu:8000
curl -H "Authorization: Bearer $UNDERSTUDY_API_KEY" https://gpu:8000/v1/models
OpenAI(base_url="https://gpu:8000/v1", api_key="sk-understudy-...")

\b
The commands below work on the bus that UNDERSTUDY_BUS names, else on that of
the data folder, whether a stack is up on it or not. With --server they ask a
gateway, and need an admin key. It is better in UNDERSTUDY_API_KEY than in
--key: others on this machine see what is typed on a command line.
"""
app = typer.Typer(no_args_is_help=True, help=HELP, short_help="API keys: who may come in, and for what")
UNITS = {"m": 60, "h": 3600, "d": 24 * 3600}


def _overlap(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhd])", text) or re.fullmatch(r"(0)()", text)
    seconds = float(found[1]) * UNITS.get(found[2], 1) if found else -1.0
    if not 0 <= seconds <= keyring.MOST_OVERLAP:
        raise typer.BadParameter("say it as 30m, 24h or 7d; 0 ends the old key at once, 90d is the longest")
    return seconds


KeyArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The key's id; `understudy keys list` tells it", show_default=False)
]


@app.command(no_args_is_help=True)
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for", show_default=False)] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it may do: {', '.join(SCOPES)}; may be given several times", show_default=False),
    ] = None,
    days: Annotated[
        int | None, typer.Option(help="Until it ends; else it does not", min=1, max=keyring.MOST_DAYS)
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(help="Requests a minute, at most", min=1, max=keyring.MOST_REQUESTS)
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(help="Requests under way, at most", min=1, max=keyring.MOST_REQUESTS)
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="The key `admin`, which may do everything, if nobody has a key")
    ] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Make a key. It is told now, alone on stdout, and never again.

    \b
    understudy keys create anna --scope inference --scope read --days 90
    understudy keys create ci --scope jobs --rpm 60 --at-once 4 --server https://gpu-box:8000
    understudy keys create --first > admin.key
    """
    if first:
        if name or scope or server:
            what = "--first makes one key, `admin` with the scope admin, where nobody could make one over HTTP"
            raise Invalid(what, "Leave out NAME, --scope and --server, or leave out --first.")
        name, scope = "admin", ["admin"]
    if not name:
        raise Invalid("A key needs a name", "Say whose it is: `understudy keys create anna --scope inference`.")
    scopes = _scopes(scope or [])
    if server:
        body = {"name": name, "scopes": scopes, "days": days, "requests_per_minute": rpm, "at_once": at_once}
        with Gateway(server, key) as gateway:
            _tell(gateway.ask("POST", "/v1/keys", body))
        return
    bus = connect(Settings(data=data_folder(data)))  # made if there is none: the first key comes before the first start
    try:
        if first and _known(bus).any_alive():
            raise Invalid("Somebody has a key already", "`understudy keys list` says who; make more without --first.")
        made = keyring.make(bus, name, scopes, days=days, requests_per_minute=rpm, at_once=at_once)
    finally:
        bus.close()
    _tell(made.model_dump())


@app.command("list")
def listed(
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="For programs: a list of {id, name, scopes, status, created_at, ends_at, requests_per_minute, at_once, made_by}",
        ),
    ] = False,
) -> None:
    """List who has a key, what it may do and until when, oldest first. Never the keys themselves.

    \b
    understudy keys list
    understudy keys list --json | jq '.[] | select(.status == "active")'
    """
    if server:
        with Gateway(server, key) as gateway:
            cards = gateway.ask("GET", "/v1/keys?order=asc&limit=10000")["data"]
    else:
        with _bus(data) as (_, keys):
            cards = [keyring.card(each).model_dump() for each in keys.all()]
    if as_json:
        print(json.dumps(cards, indent=1))
    elif cards:
        table = Table("id", "name", "scopes", "status", "made", "by", "ends", "limits", box=None, header_style="bold")
        for card in cards:
            rate, most = card["requests_per_minute"], card["at_once"]
            limits = [*([f"{rate:,} a minute"] if rate else []), *([f"{most:,} at once"] if most else [])]
            ends = _minute(card["ends_at"]) if card["ends_at"] else "never"
            who = (card["id"], card["name"], ", ".join(card["scopes"]), card["status"])
            table.add_row(*who, _minute(card["created_at"]), card["made_by"], ends, ", ".join(limits))
        output().print(table)
    else:
        errors().print("Nobody has a key. `understudy keys create --first` makes one for you.")


@app.command(no_args_is_help=True)
def revoke(key_id: KeyArgument, server: ServerOption = None, key: KeyOption = None, data: DataOption = None) -> None:
    """End a key, at once, and every page that was opened with it.

    \b
    understudy keys revoke abcd2345
    """
    if server:
        with Gateway(server, key) as gateway:
            name = gateway.ask("DELETE", _path(key_id))["name"]
    else:
        with _bus(data) as (bus, keys):
            name = keyring.end(bus, _find(keys, key_id)).name
    errors().print(f"The key {key_id} ({name}) lets nobody in any more.")


@app.command(no_args_is_help=True)
def rotate(
    key_id: KeyArgument,
    overlap: Annotated[
        float, typer.Option(parser=_overlap, metavar="TIME", help="How long the old one goes on: 30m, 24h, 7d; or 0")
    ] = "24h",  # type: ignore[assignment]  # typer reads it as if it were typed
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Make another key with the same name, scopes and limits; the old one ends after an overlap.

    \b
    understudy keys rotate abcd2345
    understudy keys rotate abcd2345 --overlap 0    # it was seen by somebody
    """
    if server:
        with Gateway(server, key) as gateway:
            made = gateway.ask("POST", f"{_path(key_id)}/rotate", {"overlap_hours": overlap / 3600})
    else:
        with _bus(data) as (bus, keys):
            made = keyring.rotate(bus, _find(keys, key_id), overlap).model_dump()
    _tell(made)
    until = f"on {_minute(time.time() + overlap)} at the latest" if overlap else "now"
    errors().print(f"The old one, {key_id}, ends {until}.")


def _tell(made: dict[str, Any]) -> None:
    until = f" until {_minute(made['ends_at'])}" if made["ends_at"] else ""
    who = f"Key {made['id']} for {made['name']}: {', '.join(made['scopes'])}{until}."
    errors().print(f"{who} It is told only now: keep it where secrets are kept.")
    print(made["key"])


def _scopes(said: list[str]) -> list[Scope]:
    for each in said:
        if each not in SCOPES:
            raise Invalid(f"There is no scope `{each}`{meant(each, SCOPES)}", f"Scopes are {', '.join(SCOPES)}.")
    if not said:
        raise Invalid("A key needs a scope", f"Say what it may do, with --scope: {', '.join(SCOPES)}.")
    return [scope for scope in SCOPES if scope in said]


@contextmanager
def _bus(data: Path | None) -> Iterator[tuple[Bus, Keys]]:
    """The bus and the keys that are on it. Raises `NotFound` where there is none."""
    folder = data_folder(data)
    with bus_of(folder) as bus:
        if bus is None:
            raise NotFound(f"There is no bus in {folder}, so nobody has a key", "Is it the right --data?")
        yield bus, _known(bus)


def _known(bus: Bus) -> Keys:
    keys = Keys()
    Reader(bus, (keys,)).load()
    return keys


def _find(keys: Keys, key_id: str) -> Key:
    if found := keys.get(key_id):
        return found
    near = meant(key_id, [key.id for key in keys.all()])
    raise NotFound(f"There is no key `{key_id}`{near}", "`understudy keys list` tells them.")


def _path(key_id: str) -> str:
    return f"/v1/keys/{quote(key_id, safe='')}"


def _minute(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
