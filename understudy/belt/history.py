"""What happened to a run, for people: a line for each message about it, in the order of time, then what trainings said.

    lines(records, run)                  # pure
    told(bus, store, run, item)          # the same, read from a bus and a store
    latest_logs(store, run)              # where it is stored what each training said

Times are UTC. What a newer version wrote is passed over. Does not print and does not know HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from understudy.belt import contracts as c
from understudy.belt.bus import Bus, Record
from understudy.belt.topics import TABLE, topic_of
from understudy.errors import Invalid, Unsupported
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore

TOPICS = tuple(topic.name for topic in TABLE if c.Progress not in topic.messages and c.KeyMade not in topic.messages)
LOG_LINES = 200
"""Of one training."""
MOST_LOGS = 20
"""Trainings whose last lines are shown together."""


def told(bus: Bus, store: ArtifactStore, run: str, item: str | None = None) -> list[str]:
    """The whole story of a run, or of one of its items; reads every topic but progress from the start."""
    story = lines((record for record in bus.replay(TOPICS) if record), run, item)
    logs = [(name, key) for name, key in latest_logs(store, run).items() if item in (None, name)]
    for name, key in logs[:MOST_LOGS]:
        artifact = store.find(key)
        said = (
            [file.read_text(errors="replace") for file in sorted(store.fetch(artifact).iterdir())] if artifact else []
        )
        story += ["", f"--- the end of what the training of {name} said"]
        story += "\n".join(said).splitlines()[-LOG_LINES:]
    if len(logs) > MOST_LOGS:
        story += ["", f"--- {len(logs) - MOST_LOGS} more trainings have a log: ask for one item"]
    return story


def latest_logs(store: ArtifactStore, run: str) -> dict[str, str]:
    """Item -> key of what its training said when it last ended."""
    return {keys.item_of_log(key): key for key in store.keys(keys.training_logs(run))}  # sorted: the last one stays


def lines(records: Iterable[Record], run: str, item: str | None = None) -> list[str]:
    """A line for each message about a run; with `item` only those about it and about the run as a whole."""
    found = []
    for record in records:
        message = _about(record, run)
        who = message and _item(message)
        if message and (who is None or item in (None, who)) and not (isinstance(message, c.ItemPlanned) and not item):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.timestamp))
            said = " ".join(_said(message, record).split())
            found.append((record.timestamp, f"{when}  {who or 'the run'}: {said}"))
    return [line for _, line in sorted(found, key=lambda line: line[0])]


def _about(record: Record, run: str) -> c.Message | None:
    """The message in a record, when it is about that run."""
    if run.encode() not in record.value:  # most are not, and this is a hundred times faster than decoding
        return None
    try:
        message = c.decode(record.value)
    except (Invalid, Unsupported):
        return None
    return message if message.run == run else None


def _item(message: c.Message) -> str | None:
    if isinstance(message, c.DeadLetter):
        try:
            return _item(c.decode(message.value.encode()))
        except (Invalid, Unsupported):
            return None
    return getattr(message, "item", None)


def _said(message: c.Message, record: Record) -> str:
    again = f" (attempt {message.attempt})" if message.attempt > 1 else ""
    generation = f" (generation {message.generation})" if message.generation > 1 else ""
    match message:
        case c.RunRequested():
            what = "taken up again" if generation else "asked for"
            return f"{what}{generation}{again}{_by(message.owner)}: {message.items:,} items on {', '.join(message.bases) or 'no base'}"
        case c.ItemPlanned():
            return f"planned{generation}: {message.what or 'nothing is trained'}, on {message.base}"
        case c.CancelRequested():
            return f"cancel was asked for{generation}{_by(message.owner)}"
        case c.RunDeleted():
            return f"deleted{_by(message.owner)}"
        case c.DatasetsMade():
            return f"the datasets are made{generation}{again}"
        case c.OnBelt():
            return f"handed to {topic_of(message).group}{generation}{again}"
        case c.ModelServed():
            return f"answers on the endpoint as {message.model}"
        case c.ItemServed():
            return "through: it is served"
        case c.ItemScored():
            return "through: it is scored"
        case c.ItemFailed():
            return f"failed at {message.station}: {message.reason}"
        case c.ReportRequested():
            return f"nothing of it is on the belt any more; the report is asked for{again}"
        case c.RunClosed():
            report = "there is a report" if message.report else "there is no report"
            return f"{message.status}: {f'at {message.station}: {message.reason}' if message.reason else report}"
        case c.DeadLetter():
            letter = f"dead letter {record.partition}-{record.offset}"
            tries = f"{message.attempts} {'try' if message.attempts == 1 else 'tries'}"
            return f"{letter}: {message.station} gave up on a message of {message.topic} after {tries}"
    return message.type


def _by(owner: str) -> str:
    return f" by {owner}" if owner else ""
