"""What each key has used: requests and tokens, by model, since this gateway started.

    tap = Tap(stream=True, hide=True)
    out = tap.feed(piece)          # what goes on to the client
    usage.add(key, model, tap.tokens)

Of an answer that passes as bytes only the place is read where the engine says how many tokens it had. A stream whose client
hung up is charged the pieces that it got. Kept in memory: what shall outlive a restart is for the log, where each key's sums are
told at the end.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.inference.engine_errors import event_as_openai
from understudy.belt.folds.keys import Key

log = logging.getLogger(__name__)

MOST = 10_000
"""Pairs of key and model that are told apart; what comes later is added up under no model."""
_PROMPT, _COMPLETION = re.compile(rb'"prompt_tokens":\s*(\d+)'), re.compile(rb'"completion_tokens":\s*(\d+)')
_USAGE = re.compile(rb'"usage":\s*\{')
_LONGEST = 400
"""Bytes of what an engine says about usage."""
_END, _LONGEST_EVENT = b"\n\n", 1 << 20
_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')


class Tap:
    """Reads the usage out of one answer that passes, and lets go on what is for the client.

    `stream`: it comes as events, which go on only whole; errors among them in OpenAI's shape. `hide`: the event about usage was
    not asked for.
    """

    __slots__ = ("_hide", "_pieces", "_rest", "_stream", "_told")

    def __init__(self, *, stream: bool, hide: bool = False) -> None:
        self._stream, self._hide = stream, hide
        self._rest = b""
        self._told: tuple[int, int] | None = None
        self._pieces = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """Of prompt and completion; of a stream that broke off, the pieces that had come."""
        return self._told or (0, self._pieces)

    def feed(self, piece: bytes) -> bytes:
        """What of the answer goes on now."""
        text = self._rest + piece if self._rest else piece
        if not self._stream:
            if b'"usage"' in text:
                self._look(text)
            self._rest = text[-_LONGEST:]
            return piece
        end = text.rfind(_END) + len(_END)
        if end < len(_END):
            if len(text) > _LONGEST_EVENT:  # no events that we know
                self._rest = b""
                return text
            self._rest = text
            return b""
        events = text if end == len(text) else text[:end]
        self._rest = text[end:]
        if b'"usage"' not in events and b'"error"' not in events:  # which inside of a text would be \"usage\"
            self._pieces += events.count(b"data: {")
            return events
        return b"".join(self._passed(event) for event in events[: -len(_END)].split(_END))

    def end(self) -> bytes:
        """What is left when the answer is over."""
        rest, self._rest = self._rest, b""
        return rest if self._stream else b""

    def _passed(self, event: bytes) -> bytes:
        if b'"error"' in event:
            return event_as_openai(event) + _END
        if _NO_CHOICES.search(event):
            self._look(event)
            return b"" if self._hide else event + _END
        self._pieces += event.startswith(b"data: {")
        return event + _END

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
        """One more request, and what it came to."""
        used = self._used.get((key.id, model))
        if used is None:
            at = (key.id, model if len(self._used) < MOST else "")
            used = self._used.setdefault(at, Used(key.id, key.name, at[1]))
        used.requests += 1
        used.prompt_tokens += tokens[0]
        used.completion_tokens += tokens[1]

    def tell(self) -> None:
        """All of it, into the log."""
        for used in self.all():
            log.info(
                "key %s (%s) has used %s: %d requests, %d prompt tokens, %d completion tokens",
                *(used.key_id, used.name, used.model, used.requests, used.prompt_tokens, used.completion_tokens),
            )

    def all(self) -> Iterator[Used]:
        """By key and model."""
        for at in sorted(self._used):
            yield self._used[at]
