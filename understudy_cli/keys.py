"""`understudy keys create | list | revoke | rotate`: who may come in through the gateway.

Works on the bus that UNDERSTUDY_BUS names, else on the one in the data folder, as whoever has the machine may; with `--server`
over HTTP, with a key of the scope `admin`. A key's text is told once, alone on stdout.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

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
from understudy_cli.options import DataOption, ServerOption
from understudy_cli.session import data_folder

app = typer.Typer(
    no_args_is_help=True,
    help="""API keys of the gateway: make, list, revoke and replace them.

\b
understudy keys create --first                          the first one, for you
understudy keys create anna --scope inference           may ask models
understudy keys create ci --scope jobs --days 90        may begin runs, and read
understudy keys list

\b
Scopes: inference (ask models), jobs (begin, cancel and delete runs; read),
read (runs, reports, files), admin (everything, keys too).

\b
With a key:
UNDERSTUDY_API_KEY=sk-understudy-... understudy run RECIPE --server URL
curl -H "Authorization: Bearer sk-understudy-..." URL/v1/models
OpenAI(base_url="URL/v1", api_key="sk-understudy-...")""",
)
KeyArgument = Annotated[str, typer.Argument(help="The key's id; `understudy keys list` tells it", show_default=False)]
HOUR = 3600


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for")] = "",
    scope: Annotated[list[str] | None, typer.Option(help=f"What it may do: {', '.join(SCOPES)}; several times")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it ends", min=0.001, max=keyring.MOST_DAYS)] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute, at most", min=1)] = None,
    at_once: Annotated[int | None, typer.Option(help="Requests under way at once, at most", min=1)] = None,
    first: Annotated[bool, typer.Option("--first", help="An admin key, if nobody has a key yet")] = False,
    server: ServerOption = None,
    data: DataOption = None,
) -> None:
    """Make a key. Its text is told now and never again."""
    name = name or ("admin" if first else "")
    if not name:
        raise Invalid("A key needs a name", "Say whose it is: `understudy keys create anna --scope inference`.")
    scopes = _scopes(["admin"] if first and not scope else scope or [])
    if server:
        body = {"name": name, "scopes": scopes, "days": days, "requests_per_minute": rpm, "at_once": at_once}
        with Gateway(server) as gateway:
            _tell(gateway.ask("POST", "/v1/keys", body))
        return
    with _bus(data) as (bus, keys):
        if first and keys.any_alive():
            raise Invalid("Somebody has a key already", "`understudy keys list` says who; make more without --first.")
        made = keyring.make(bus, name, scopes, days=days, requests_per_minute=rpm, at_once=at_once)
    _tell(made.model_dump())


@app.command("list")
def listed(
    server: ServerOption = None,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """Who has a key, what it may do, and until when. Never the keys themselves."""
    if server:
        with Gateway(server) as gateway:
            cards = gateway.ask("GET", "/v1/keys?order=asc&limit=10000")["data"]
    else:
        with _bus(data) as (_, keys):
            cards = [keyring.card(key).model_dump() for key in keys.all()]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    if not cards:
        errors().print("There is no key. `understudy keys create --first` makes one.")
        return
    table = Table(box=None, header_style="bold")
    for column in ("id", "name", "scopes", "status", "made", "ends", "limits"):
        table.add_column(column)
    for card in cards:
        rate, most = card["requests_per_minute"], card["at_once"]
        limits = ", ".join([*([f"{rate}/min"] if rate else []), *([f"{most} at once"] if most else [])])
        ends = _day(card["ends_at"]) if card["ends_at"] else "never"
        row = (
            card["id"],
            card["name"],
            ", ".join(card["scopes"]),
            card["status"],
            _day(card["created_at"]),
            ends,
            limits,
        )
        table.add_row(*row)
    output().print(table)


@app.command(no_args_is_help=True)
def revoke(key: KeyArgument, server: ServerOption = None, data: DataOption = None) -> None:
    """End a key, at once."""
    if server:
        with Gateway(server) as gateway:
            name = gateway.ask("DELETE", f"/v1/keys/{key}")["name"]
    else:
        with _bus(data) as (bus, keys):
            name = keyring.end(bus, _find(keys, key)).name
    errors().print(f"The key {key} ({name}) lets nobody in any more.", highlight=False)


@app.command(no_args_is_help=True)
def rotate(
    key: KeyArgument,
    overlap: Annotated[float, typer.Option(help="Hours for which the old one goes on", min=0, max=2160)] = 24,
    server: ServerOption = None,
    data: DataOption = None,
) -> None:
    """Make another key like it; the old one ends after a while."""
    if server:
        with Gateway(server) as gateway:
            made = gateway.ask("POST", f"/v1/keys/{key}/rotate", {"overlap_hours": overlap})
    else:
        with _bus(data) as (bus, keys):
            made = keyring.rotate(bus, _find(keys, key), overlap * HOUR).model_dump()
    _tell(made)
    errors().print(f"The old one, {key}, ends in {overlap:g} hours.", highlight=False)


def _tell(made: dict[str, Any]) -> None:
    said = f"Key {made['id']} for {made['name']}: {', '.join(made['scopes'])}. Keep it: this is the only time that it is told."
    errors().print(said, highlight=False)
    print(made["key"])


def _scopes(said: list[str]) -> list[Scope]:
    for each in said:
        if each not in SCOPES:
            raise Invalid(f"There is no scope `{each}`", f"Scopes are {', '.join(SCOPES)}.")
    if not said:
        raise Invalid("A key needs a scope", f"Say what it may do, with --scope: {', '.join(SCOPES)}.")
    return [scope for scope in SCOPES if scope in said]


@contextmanager
def _bus(data: Path | None) -> Iterator[tuple[Bus, Keys]]:
    """The bus, made if there is none yet, and the keys that are on it."""
    settings, keys = Settings(data=data_folder(data)), Keys()
    bus = connect(settings)
    try:
        Reader(bus, (keys,)).load()
        yield bus, keys
    finally:
        bus.close()


def _find(keys: Keys, key_id: str) -> Key:
    if found := keys.get(key_id):
        return found
    near = meant(key_id, [key.id for key in keys.all()])
    raise NotFound(f"There is no key `{key_id}`{near}", "`understudy keys list` tells them.")


def _day(at: float) -> str:
    soon = abs(at - time.time()) < 2 * 24 * HOUR
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M" if soon else "%Y-%m-%d")
