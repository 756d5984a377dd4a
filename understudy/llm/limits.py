"""How fast one model at one endpoint may be asked, learnt from what the endpoint says.

    sent = limits.take(tokens)          # a `Sent`: go; a number: seconds to wait before asking again
    limits.answered(sent, headers)      # or: limits.refused(sent, headers, message), of a 429

Keeps a mirror of the endpoint's two token buckets, requests and tokens per minute. Endpoints that send `x-ratelimit-*`
headers say how much was left after each request; that is compared with what we believed was left after the same
request, so that the time an answer took does not matter, and the difference moves the mirror: down at once, up
slowly. Endpoints that only say 429 are measured: between two moments at which a bucket was empty, what was let through
is what it was filled with. Safe in several threads. Does not wait (`chat.py` does) or read
headers (`headers.py`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from understudy.llm import headers

MINUTE = 60.0
UPWARDS = 0.1
"""Share of a difference in our favour that is believed at once: answers overtake one another."""
MARGIN = 2.0
"""How much must be there for one to go: the mirror is never quite exact, and what is left in a bucket is not lost."""
PROBE = 60.0
"""Seconds without a request after which one goes whatever we believe: what we were told may have been wrong."""
GROWTH = 0.0002
"""By which a measured rate grows per second in the minute after a 429, and faster with every further one without: limits are
raised, too, and some 429s come from a crowd that goes away."""
GUESS_GROWTH, GUESS_CUT = 0.05, 0.7
"""The same of a rate that was only guessed, and what is left of it at a 429 that comes too early to measure anything."""
SLOWEST, FASTEST = 1e-6, 1e9
"""Per second, whatever was told or measured."""
ENOUGH = 10
"""Requests (or as many tokens as they took) between two 429s that make a measurement."""


@dataclass(frozen=True)
class Sent:
    """A request that was let go."""

    at: float
    tokens: int
    marks: tuple[float | None, float | None]
    """What we believed was left of requests and of tokens, less all corrections until then; None: nothing was known."""


@dataclass
class Bucket:
    """One bucket of the endpoint's, as far as we know it."""

    rate: float | None = None
    """What it is filled with per second; None: no bound is known."""
    room: float = 0.0
    """The most it holds."""
    level: float = 0.0
    at: float = 0.0
    """When it held `level`."""
    last: float = 0.0
    """When one was let go."""
    corrected: float = 0.0
    """Sum of all corrections of `level`."""
    told: bool = False
    """By headers; otherwise it was measured."""
    began: float | None = None
    """Of measuring: the first request, later a moment when it was empty."""
    gone: float = 0.0
    """What was let through since `began`."""
    measured: bool = False
    """Whether `rate` is more than a guess."""
    emptied: bool = False
    """Whether it was empty when measuring began."""
    short: tuple[float, float] | None = None
    """When, and for which amount, it was found empty, not yet measured."""
    heard: float = 0.0
    """When it was found empty last."""

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` fits."""
        self._measure(now)
        if self.rate is None:
            return 0.0
        if not self.told:
            growth = GROWTH * max(1.0, (now - self.heard) / MINUTE) ** 3 if self.measured else GUESS_GROWTH
            self.rate = min(FASTEST, self.rate * (1 + growth * min(1.0, now - self.at)))
        self.level = min(self.room, self.level + self.rate * (now - self.at))
        self.at = now
        if now - self.last > PROBE:
            return 0.0
        return max(0.0, (min(amount * MARGIN, self.room) - self.level) / self.rate)

    def take(self, amount: float, now: float) -> float | None:
        """The mark of this request."""
        if self.began is None or now - self.last > MINUTE:
            self.began, self.gone, self.emptied = now, 0.0, False
        self.last = now
        self.gone += amount
        if self.rate is None:
            return None
        self.level -= amount
        return self.level - self.corrected

    def tell(self, mark: float | None, limit: float, remaining: float, reset: float | None, now: float) -> None:
        """Headers said that after the request of this mark so much was left of the limit."""
        used, period = limit - remaining, MINUTE
        if reset is not None and reset > MINUTE + 1 and remaining > 0 and used > 0:  # a limit per hour or day
            period = reset * limit / used
        self.rate = max(SLOWEST, limit / period)
        if not self.told or mark is None:
            if not self.told:
                self.room, self.level, self.at, self.told = limit, min(remaining, limit), now, True
            return
        error = remaining - (mark + self.corrected)
        self._correct(error if error < 0 else error * UPWARDS)

    def refuse(self, mark: float | None, amount: float, at: float, news: bool) -> None:
        """It was short of `amount`, which was sent `at`. `news`: that was after we heard of the last time."""
        if self.told:
            if mark is not None:
                if mark + self.corrected > 0.05 * self.room:  # it holds less than we thought
                    self.room = max(2 * amount, self.room / 2)
                self._correct(min(0.0, -self.level))
        elif news:
            self.short = (at, amount)

    def _measure(self, now: float) -> None:
        """When all 429s of one moment have come, so that `gone` is what was let through until then."""
        if self.short is None or self.began is None:
            return
        (at, amount), self.short = self.short, None
        self.heard = at
        rate = self.gone / max(0.001, at - self.began)
        if self.emptied and self.gone >= ENOUGH * amount:
            self.measured = True
        elif self.rate is not None:
            rate = self.rate if self.measured else self.rate * GUESS_CUT
        self.rate = max(rate, amount / MINUTE)
        self.room, self.level, self.at = max(self.rate, amount), self.rate * (now - at), now
        if not self.emptied or at - self.began > MINUTE:
            self.began, self.gone, self.emptied = at, 0.0, True

    def _correct(self, step: float) -> None:
        self.level += step
        self.corrected += step


@dataclass
class Limits:
    """Of one model at one endpoint."""

    clock: Callable[[], float] = time.monotonic
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    _paused: float = 0.0
    _refused: float = -math.inf
    """When we last heard of a refusal."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, tokens: int) -> Sent | float:
        """Let a request go that may cost so many tokens, or say in how many seconds to ask again."""
        with self._lock:
            now = self.clock()
            if self._paused > now:
                return self._paused - now
            if (wait := max(self.requests.wait(1, now), self.tokens.wait(tokens, now))) > 0:
                return wait
            return Sent(now, tokens, (self.requests.take(1, now), self.tokens.take(tokens, now)))

    def pause(self, seconds: float) -> None:
        """Let nothing go for so long."""
        with self._lock:
            self._paused = max(self._paused, self.clock() + seconds)

    def answered(self, sent: Sent, said: Mapping[str, str]) -> None:
        """The endpoint took the request."""
        with self._lock:
            self._tell(sent, said)

    def refused(self, sent: Sent, said: Mapping[str, str], message: str) -> float:
        """The endpoint said 429; seconds until there should be room again, 0 when nothing is known."""
        with self._lock:
            now, news = self.clock(), sent.at > self._refused
            self._tell(sent, said)
            short = headers.left(said, "tokens")
            of_tokens = short < sent.tokens if short is not None else "token" in message.lower()
            bucket, amount = (self.tokens, sent.tokens) if of_tokens else (self.requests, 1)
            for each, untaken in ((self.requests, 1), (self.tokens, sent.tokens)):
                if each.began is not None and sent.at > each.began:
                    each.gone -= untaken
            bucket.refuse(sent.marks[of_tokens], amount, sent.at, news)
            self._refused = now
            return bucket.wait(amount, now) if bucket.told else 0.0

    def _tell(self, sent: Sent, said: Mapping[str, str]) -> None:
        for bucket, mark, name in (
            (self.requests, sent.marks[0], "requests"),
            (self.tokens, sent.marks[1], "tokens"),
        ):
            limit, remaining = headers.limit(said, name), headers.left(said, name)
            if limit and remaining is not None:
                bucket.tell(mark, limit, remaining, headers.reset(said, name), self.clock())
