"""The API keys that were given out, and which of them let somebody in."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass, replace

from understudy.belt.apikeys import presented
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyEnded, KeyMade, Message
from understudy.terms import Scope


@dataclass(frozen=True)
class Key:
    """One key."""

    made: KeyMade
    created: int
    """Seconds since the epoch."""
    ends: float | None
    """When it lets nobody in any more: its expiry or its end, whichever is earlier. Seconds since the epoch."""

    @property
    def id(self) -> str:
        return self.made.key_id

    @property
    def name(self) -> str:
        return self.made.name

    def may(self, scope: Scope) -> bool:
        """Whether it opens doors of that scope."""
        has = self.made.scopes
        return scope in has or "admin" in has or (scope == "read" and "jobs" in has)

    def lives(self, now: float) -> bool:
        """Whether it lets anybody in at `now`, seconds since the epoch."""
        return self.ends is None or now < self.ends


class Keys:
    """Keys by id."""

    topics = ("keys",)

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}
        self._ended: dict[str, float] = {}
        """Ends that were read, also of keys that were not read yet."""

    def read(self, message: Message, record: Record) -> None:
        if isinstance(message, KeyMade):
            if message.key_id not in self._keys:  # the first of an id is the key
                ends = [at for at in (message.expires, self._ended.get(message.key_id)) if at is not None]
                self._keys[message.key_id] = Key(message, int(record.timestamp), min(ends, default=None))
        elif isinstance(message, KeyEnded):
            at = self._ended[message.key_id] = min(message.at, self._ended.get(message.key_id, message.at))
            if key := self._keys.get(message.key_id):
                self._keys[message.key_id] = replace(key, ends=at if key.ends is None else min(at, key.ends))

    def find(self, text: str) -> Key | None:
        """The key that somebody presents, if it lets them in now."""
        if (said := presented(text)) is None or (key := self.get(said[0])) is None:
            return None
        return key if hmac.compare_digest(key.made.secret_sha256, said[1]) and key.lives(time.time()) else None

    def get(self, key_id: str) -> Key | None:
        """The key of that id, alive or not."""
        return self._keys.get(key_id)

    def all(self) -> list[Key]:
        """Every key that was ever made, oldest first."""
        return sorted(self._keys.copy().values(), key=lambda key: (key.created, key.id))

    def any_alive(self) -> bool:
        """Whether somebody could come in with a key now."""
        return any(key.lives(time.time()) for key in self.all())
