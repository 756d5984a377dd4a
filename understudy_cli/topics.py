"""`understudy topics`: what lies on the bus and who still has to work on it. Changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table

from understudy.belt.bus import Bus
from understudy.belt.folds.letters import Letters
from understudy.belt.topics import DAY, TABLE
from understudy_cli.console import errors, output
from understudy_cli.folder import bus_of
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder


def topics(
    data: DataOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="For programs: a list of {topic, partitions, kept_seconds, messages, group, lag, dead_letters, open}",
        ),
    ] = False,
) -> None:
    """List the topics: how much is on each, and how far those who work on it are behind.

    \b
    understudy topics
    understudy topics --json | jq '.[] | select(.open > 0)'

    lag: messages that the topic's group has not finished yet, those in hand included. A dash: it never came up.

    dead letters: messages taken from this topic that a station gave up, and how many of them still wait for you.

    The bus is the one that UNDERSTUDY_BUS names, else the one in the data folder.
    """
    folder = data_folder(data)
    with bus_of(folder) as bus:
        rows = _rows(bus) if bus else []
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        table = Table(box=None, header_style="bold")
        for column in ("topic", "partitions", "kept", "messages", "lag", "dead letters"):
            table.add_column(column, justify="right" if column in ("partitions", "messages") else "left")
        for row in rows:
            behind = "-" if row["lag"] is None else f"{row['lag']:,}"
            lag = f"{row['group']} {behind}" if row["group"] else ""
            dead = f"{row['dead_letters']:,} ({row['open']:,} open)" if row["dead_letters"] else ""
            kept = f"{row['kept_seconds'] // DAY} days" if row["kept_seconds"] else "for ever"
            table.add_row(row["topic"], str(row["partitions"]), kept, f"{row['messages']:,}", lag, dead)
        output().print(table)
    else:
        errors().print(f"There is no bus in {folder} yet. `understudy up` or `understudy run` makes one.")


def _rows(bus: Bus) -> list[dict[str, Any]]:
    messages: Counter[str] = Counter()
    letters = Letters()
    for record in bus.replay([topic.name for topic in TABLE]):
        if record:
            messages[record.topic] += 1
            letters.read(record)
    dead = letters.all()
    lags = {topic.group: bus.lag(topic.group) for topic in TABLE if topic.group}
    return [
        {
            "topic": topic.name,
            "partitions": topic.partitions,
            "kept_seconds": topic.retention,
            "messages": messages[topic.name],
            "group": topic.group,
            "lag": lags[topic.group].get(topic.name) if topic.group else None,
            "dead_letters": sum(letter.topic == topic.name for letter in dead),
            "open": sum(letter.topic == topic.name and letter.status == "open" for letter in dead),
        }
        for topic in TABLE
    ]
