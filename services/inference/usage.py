"""What each key has used: requests and tokens, by model, since this gateway started.

    tap = Tap(hide=True)
    out = tap.feed(piece)          # what goes on to the client
    usage.add(key, model, tap)

Of an answer that passes as bytes only the place is read where the engine says how many tokens it had. A stream whose client
hung up is charged the pieces that it got. Kept in memory: what shall outlive a restart is for the log, where each key's sums are
told at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.belt.folds.keys import Key

MOST = 10_000
"""Pairs of key and model that are told apart; what comes later is added up under no model."""
_PROMPT, _COMPLETION = re.compile(rb'"prompt_tokens":\s*(\d+)'), re.compile(rb'"completion_tokens":\s*(\d+)')
_USAGE = re.compile(rb'"usage":\s*\{')
_LONGEST = 400
"""Bytes of what an engine says about usage."""
_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')


class Tap:
    """Reads the usage out of one answer that passes. `stream`: it comes as events; `hide`: the one about usage was not asked for."""

    def __init__(self, *, stream: bool, hide: bool) -> None:
        self._stream, self._hide = stream, hide
        self._rest = b""
        self._told: tuple[int, int] | None = None
        self._pieces = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """Of prompt and completion; of a stream that broke off, the pieces that had come."""
        return self._told or (0, self._pieces)

    def feed(self, piece: bytes) -> bytes:
        """What of the answer goes on now: events only whole."""
        if not self._stream:
            self._look(self._rest + piece)
            self._rest = (self._rest + piece)[-_LONGEST:]
            return piece
        whole, end, self._rest = (self._rest + piece).rpartition(b"\n\n")
        if not end:
            return b""
        events = whole + end
        if not _NO_CHOICES.search(events):
            self._pieces += events.count(b"data: {")
            return events
        return b"".join(event + end for event in whole.split(end) if self._passes(event))

    def end(self) -> bytes:
        """What is left when the answer is over."""
        rest, self._rest = self._rest, b""
        return rest if self._stream else b""

    def _passes(self, event: bytes) -> bool:
        if not _NO_CHOICES.search(event):
            self._pieces += event.startswith(b"data: {")
            return True
        self._look(event)
        return not self._hide

    def _look(self, text: bytes) -> None:
        for found in _USAGE.finditer(text):
            said = text[found.start() : found.start() + _LONGEST]
            prompt, completion = _PROMPT.search(said), _COMPLETION.search(said)
            if prompt:
                self._told = int(prompt[1]), int(completion[1]) if completion else 0


@dataclass
class Used:
    """Sums of one key on one model."""

    key_id: str
    name: str
    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Usage:
    """Of one gateway process."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], Used] = {}

    def add(self, key: Key, model: str, tokens: tuple[int, int]) -> None:
        """One more answer."""
        at = (key.id, model)
        if at not in self._used and len(self._used) >= MOST:
            at = (key.id, "")
        used = self._used.setdefault(at, Used(key.id, key.name, at[1]))
        used.requests += 1
        used.prompt_tokens += tokens[0]
        used.completion_tokens += tokens[1]

    def all(self) -> Iterator[Used]:
        """By key and model."""
        for at in sorted(self._used):
            yield self._used[at]
