"""HTTP resource of API keys, for administrators: who has one, a new one, an end, a replacement.

The text of a key is in the one answer that makes it, and nowhere else. What an answer says is on the bus, and holds here, when
it is given. Who may come here is decided before (`admission.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from understudy.belt import keyring
from understudy.belt.bus import Bus
from understudy.belt.folds.keys import Key, Keys
from understudy.belt.folds.reader import shown
from understudy.belt.keyring import KeyCard, NewKey
from understudy.errors import NotFound, Transient
from understudy.service.audit import audited
from understudy.service.web import Limit, Order, owner_of, page_of
from understudy.terms import Scope


class KeyCreate(BaseModel):
    """Body of POST /v1/keys."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(max_length=64)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=8)]
    days: Annotated[float | None, Field(ge=keyring.FEWEST_DAYS, le=keyring.MOST_DAYS)] = None
    """Until it ends; None: it does not end by itself."""
    requests_per_minute: Annotated[int | None, Field(ge=1, le=keyring.MOST_REQUESTS)] = None
    at_once: Annotated[int | None, Field(ge=1, le=keyring.MOST_REQUESTS)] = None


class KeyRotate(BaseModel):
    """Body of POST /v1/keys/{id}/rotate."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    overlap_hours: Annotated[float, Field(ge=0, le=keyring.MOST_OVERLAP / 3600)]
    """How long the old key goes on."""


def _not_kept(response: Response) -> None:
    response.headers["cache-control"] = "no-store"


def router(bus: Bus, keys: Keys, caught_up: Callable[[], bool]) -> APIRouter:
    """The routes; `keys` is what was read from `bus`."""
    routes = APIRouter(prefix="/v1/keys", dependencies=[Depends(_not_kept)])

    @routes.post("")
    def create(body: KeyCreate, request: Request) -> NewKey:
        with audited(request, "key.create", body.name):
            made = keyring.make(
                bus,
                body.name,
                body.scopes,
                days=body.days,
                requests_per_minute=body.requests_per_minute,
                at_once=body.at_once,
                by=owner_of(request),
            )
            return once(made)

    @routes.get("")
    def listed(after: str | None = None, limit: Limit = 1_000, order: Order = "desc") -> dict[str, Any]:
        return page_of([keyring.card(key) for key in reversed(keys.all())], after, limit, order)

    @routes.delete("/{key_id}")
    def revoke(key_id: str, request: Request) -> KeyCard:
        with audited(request, "key.revoke", key_id):
            ended = keyring.end(bus, find(key_id), by=owner_of(request))
            _until(lambda: (key := keys.get(key_id)) is not None and keyring.card(key).status == "ended")
            return ended

    @routes.post("/{key_id}/rotate")
    def rotate(key_id: str, body: KeyRotate, request: Request) -> NewKey:
        with audited(request, "key.rotate", key_id):
            old = find(key_id)
            made = once(keyring.rotate(bus, old, body.overlap_hours * 3600, by=owner_of(request)))
            latest = time.time() + body.overlap_hours * 3600
            _until(lambda: (key := keys.get(key_id)) is not None and key.ends is not None and key.ends <= latest)
            return made

    def find(key_id: str) -> Key:
        if key := keys.get(key_id):
            return key
        if not caught_up():
            raise Transient("This service is still reading the log", "Try again in a moment.")
        raise NotFound(f"There is no key `{key_id[:100]}`", "GET /v1/keys lists those there are.")

    def once(made: NewKey) -> NewKey:
        _until(lambda: keys.find(made.key) is not None)
        return made

    return routes


def _until(met: Callable[[], bool]) -> None:
    if not shown(met):
        what = "What was asked is on the bus, but was not read from it in time"
        raise Transient(what, "GET /v1/keys says what holds; a key whose text was not told is best ended.")
