"""How many engines there may be at once, and which one goes when another needs its place: pure decisions, under the fleet's lock.

Each takes memory, so there are `most`, those that are ending included: a place is free when the process is gone. Who wants one
waits in turn. The least recently used goes that is idle: nothing is brought to the endpoint on it, scored on it or asked of
it. Who has waited for long also gets the place of one that is asked, or that has items which wait to be scored; and an engine
that could go is lent to no further items while somebody waits so long, so that two runs on two bases take turns of minutes.
An engine's start takes half a minute: a place that was taken is not taken back before it was of use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass

from services.inference.engine import Engine
from understudy.errors import Invalid, Transient

REST = 10.0
"""Seconds without a request after which an engine counts as idle."""
PATIENT = 120.0
"""Seconds after which who waits is served before who comes."""
WANTED = 15.0
"""Seconds for which somebody waits who was not heard of again: a client that was told to try again does within that."""


class NoPlace(Transient):
    """All engines that there may be are in use."""

    def __init__(self, most: int) -> None:
        count = "the one engine that there may be is" if most == 1 else f"all {most} engines that there may be are"
        super().__init__(f"{count} in use (UNDERSTUDY_MAX_ENGINES)")


@dataclass
class Wait:
    """Somebody wants an engine that has no place."""

    since: float
    heard: float


class Places:
    """Places of engines."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ending: list[Engine] = []
        self._waits: dict[str, Wait] = {}
        """By base."""
        self.kept: set[str] = set()
        """Bases whose engines stay, whatever else is wanted."""
        self.needed: Set[str] = frozenset()
        """Bases that open runs need."""
        self.scored: Set[str] = frozenset()
        """Bases with items that are being scored."""
        self.queued: Set[str] = frozenset()
        """Bases with items that wait to be scored."""

    def take(self, name: str, engines: Sequence[Engine], warm: bool) -> Engine | None:
        """A place for the engine of `name` beside these: None when it has one, else the engine that shall go first.

        Raises `NoPlace` when none can go, or one that goes is waited for, and `Invalid` when none ever will.
        """
        now, running = time.monotonic(), [engine for engine in engines if engine.gave_up is None]
        ending = len(self.ending())
        wait = Wait(now, now) if warm else self._waiting(name, now)
        ahead = sum(other.since < wait.since for other in self._waits.values() if other is not wait)
        free = self._most - len(running) - ending
        if free > ahead:
            self._waits.pop(name, None)
            return None
        if self._most <= len(self.kept - {name}):
            raise Invalid(
                f"There may be {self._most} engines (UNDERSTUDY_MAX_ENGINES), and those of {', '.join(sorted(self.kept))} stay",
                "Raise that number, if the memory is there, or leave UNDERSTUDY_BASE out.",
            )
        spared = self.needed if warm else frozenset()
        patient = now - wait.since > PATIENT
        idle = [
            e for e in running if e.base.name not in spared and self._may_go(e) and (patient or self._rests(e, now))
        ]
        if not idle or free + ending > ahead:
            raise NoPlace(self._most)
        return min(idle, key=lambda engine: (engine.failure is None, engine.base.name in self.queued, engine.used))

    def end(self, engine: Engine) -> None:
        """It goes; its place is free when it is gone."""
        engine.retire()
        self._ending.append(engine)

    def ending(self) -> list[Engine]:
        """Those that are going, and not gone."""
        self._ending = [engine for engine in self._ending if engine.alive]
        return list(self._ending)

    def may_hold(self, engine: Engine) -> None:
        """Raises `NoPlace` when somebody has waited for so long that whoever uses `engine` has to wait, too."""
        now, name = time.monotonic(), engine.base.name
        others = [wait for base, wait in self._heard(now).items() if base != name]
        if name not in self.kept and any(now - wait.since > PATIENT for wait in others):
            self._waiting(name, now)
            raise NoPlace(self._most)
        self._waits.pop(name, None)

    def _waiting(self, name: str, now: float) -> Wait:
        wait = self._heard(now).setdefault(name, Wait(now, now))
        wait.heard = now
        return wait

    def _heard(self, now: float) -> dict[str, Wait]:
        self._waits = {name: wait for name, wait in self._waits.items() if now - wait.heard < WANTED}
        return self._waits

    def _may_go(self, engine: Engine) -> bool:
        name = engine.base.name
        return not (engine.users or name in self.kept or name in self.scored)

    def _rests(self, engine: Engine, now: float) -> bool:
        quiet = not engine.under_way and now - engine.used > REST and engine.base.name not in self.queued
        return engine.failure is not None or quiet
