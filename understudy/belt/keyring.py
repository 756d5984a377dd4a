"""How a key is given out, ended and replaced, and what is told of one: what the door and the command line do, in one place.

    text, card = make(bus, "anna", ("inference",), days=90)     # text is shown once, to whoever asked
    end(bus, card.id)
    text, card = rotate(bus, key, overlap=24 * 3600)

Whoever calls has checked that they may. What was published is on the bus when a function returns. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from understudy.belt.apikeys import mint
from understudy.belt.bus import Bus
from understudy.belt.contracts import KeyEnded, KeyMade
from understudy.belt.folds.keys import Key
from understudy.errors import Invalid
from understudy.terms import Scope

DAY = 24 * 3600
FEWEST_DAYS, MOST_DAYS = 0.001, 3650
"""A minute and a half: a key that has ended when it is told was never one."""
MOST_REQUESTS = 1_000_000
"""That a key can allow, in a minute or at once."""
MOST_OVERLAP = 90 * DAY
"""Seconds."""


class KeyCard(BaseModel):
    """A key as lists show it: nothing of its secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    scopes: tuple[Scope, ...]
    status: Literal["active", "ended"]
    created_at: int
    """Seconds since the epoch, as all times here."""
    ends_at: int | None
    """When it lets nobody in any more; None: never."""
    requests_per_minute: int | None
    at_once: int | None
    made_by: str
    """Name of the key it was made with; empty where whoever has the machine made it."""


class NewKey(KeyCard):
    """A key that was just made, and the one time that its text is told."""

    key: str


def card(key: Key) -> KeyCard:
    """What may be told of a key."""
    return _card(key.made, key.created, key.ends)


def make(
    bus: Bus,
    name: str,
    scopes: Sequence[Scope],
    *,
    days: float | None = None,
    requests_per_minute: int | None = None,
    at_once: int | None = None,
    by: str = "",
) -> NewKey:
    """A new key, without an end where no `days` are named. Raises `Invalid` for a name or scopes that cannot be."""
    now = time.time()
    text, made = mint(
        name,
        scopes,
        expires=None if days is None else now + days * DAY,
        requests_per_minute=requests_per_minute,
        at_once=at_once,
        by=by,
    )
    bus.publish(made)
    return _new(text, made, now)


def end(bus: Bus, key: Key, by: str = "") -> KeyCard:
    """From now on it lets nobody in. One that has ended stays as it was."""
    now = time.time()
    if not key.lives(now):
        return card(key)
    bus.publish(KeyEnded(key_id=key.id, at=now, by=by))
    return _card(key.made, key.created, now)


def rotate(bus: Bus, key: Key, overlap: float, by: str = "") -> NewKey:
    """Another key with the same name, scopes, limits and length of life; the old one ends after `overlap` seconds.

    Raises `Invalid` for one that has ended: who is without may not come in again by that.
    """
    now, old = time.time(), key.made
    if not key.lives(now):
        raise Invalid(f"The key {key.id} ({key.name}) has ended", "Make a new one: `understudy keys create`.")
    text, made = mint(
        old.name,
        old.scopes,
        expires=None if old.expires is None else now + old.expires - key.created,
        requests_per_minute=old.requests_per_minute,
        at_once=old.at_once,
        by=by,
    )
    bus.publish(made, KeyEnded(key_id=key.id, at=now + overlap, by=by))
    return _new(text, made, now)


def _new(text: str, made: KeyMade, now: float) -> NewKey:
    return NewKey(key=text, **dict(_card(made, int(now), made.expires)))


def _card(made: KeyMade, created: int, ends: float | None) -> KeyCard:
    return KeyCard(
        id=made.key_id,
        name=made.name,
        scopes=made.scopes,
        status="active" if ends is None or time.time() < ends else "ended",
        created_at=created,
        ends_at=None if ends is None else int(ends),
        requests_per_minute=made.requests_per_minute,
        at_once=made.at_once,
        made_by=made.by,
    )
